"""The record of a run whose workdir lies in a bucket: written into a folder of this machine, and sent after by parts.

An object cannot be appended to. What a file has grown by is stored as an object of its own, and the bucket is told to put the two together,
which happens at once or not at all. Parts of the record end at the end of a line.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from lgrpo.errors import UserError
from lgrpo.runs import storage

INTERVAL = 30.0
"""Seconds between two parts: what a kill may lose, except that everything is sent before a checkpoint is."""


class Mirror:
    """A folder of this machine whose growing files follow in the bucket, in a thread."""

    def __init__(self, target: storage.Place, files: tuple[str, ...], folders: tuple[str, ...]) -> None:
        """files: fetched where they are there, and followed. folders: whose files are followed. Errors: UserError."""
        self.folder = Path(tempfile.mkdtemp(prefix="lgrpo-record-"))
        self._target, self._files, self._folders = target, files, folders
        self._sent: dict[str, tuple[int, int]] = {}  # bytes, generation
        self._one_at_a_time, self._ended, self._silent = threading.Lock(), threading.Event(), False
        with storage.explained(target):
            for name in files:
                storage.download(target / name, self.folder / name)
        self._thread = threading.Thread(target=self._follow, name="lgrpo-record", daemon=True)

    def start(self) -> None:
        """Sends what is there as it is now, and follows from here on. Errors: UserError."""
        with storage.explained(self._target):
            self._tidy()
        self.send()
        self._thread.start()

    def _tidy(self) -> None:
        """Parts of a process that was killed: readers of a folder of event files would take one for a file of its own."""
        parts = [f"{name}{storage.PART}" for name in self._files]
        parts += [
            f"{name}/{child}"
            for name in self._folders
            for child in storage.files_below(self._target / name)
            if child.endswith(storage.PART)
        ]
        for part in parts:
            (self._target / part).unlink(missing_ok=True)

    def _follow(self) -> None:
        while not self._ended.wait(INTERVAL):
            try:
                self.send()
                self._silent = False
            except UserError as error:
                if not self._silent:  # once for each time that it fails
                    self._silent = True
                    print(f"warning: {error}; the record waits in {self.folder}", file=sys.stderr)

    def send(self) -> None:
        """What the bucket does not have yet. Errors: UserError."""
        paths = [self.folder / name for name in self._files]
        paths += [path for name in self._folders for path in sorted((self.folder / name).glob("*"))]
        with self._one_at_a_time, storage.explained(self._target):
            for path in paths:
                if path.is_file():
                    self._send(path, path.relative_to(self.folder).as_posix())

    def _send(self, path: Path, name: str) -> None:
        sent, version = self._sent.get(name, (0, 0))
        with path.open("rb") as file:
            file.seek(sent)
            part = file.read()
        if path.suffix == ".jsonl":
            part = part[: part.rfind(b"\n") + 1]
        if not part and version:
            return
        target = self._target / name
        if version:
            version = storage.append(target, part, version)
        if not version:
            sent, part = 0, path.read_bytes()[: sent + len(part)]
            version = storage.replace(target, part)
        self._sent[name] = (sent + len(part), version)

    def close(self) -> None:
        """Sends the rest. Errors: UserError saying where the record is, when the bucket does not take it."""
        self._ended.set()
        with contextlib.suppress(RuntimeError):  # never started
            self._thread.join()
        try:
            self.send()
        except UserError as error:
            raise UserError(f"{error}; the record of the run is complete in {self.folder}") from error
        shutil.rmtree(self.folder, ignore_errors=True)
