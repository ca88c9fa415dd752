"""One run per workdir: a file says who is at work there, and is renewed while that process lives.

The file is created only if it is absent. A lock is stale when its process is gone: on this machine that is looked up; another machine's lock is
watched, and is stale when nobody renews it for STALE seconds, whatever the two clocks say. In a bucket every write names the generation of the
object that it replaces, so that of two that want the lock at once one is told that it came late.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

from lgrpo.errors import UserError
from lgrpo.runs import multihost, storage

FILE = "lock.json"
RENEW = 10.0
"""Seconds between two signs of life."""
STALE = 45.0
"""Seconds without one after which the process of another machine counts as gone."""
_SETTLE = 1.0  # seconds for whoever is just writing the file


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine started, in ticks since the boot; "" when there is none or the system does not say."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()  # the name before it may hold blanks
    return fields[19] if len(fields) > 19 else ""


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id").strip()


def _alive_here(pid: int, started: str) -> bool:
    if os.path.isdir("/proc/self"):
        return bool(started) and _started(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _parsed(text: str) -> dict[str, Any] | None:
    """What a lock says; None when it is none or not whole (it is being written)."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "token" in found else None


class _File:
    """The lock on a file system: created only where it is absent, renewed by a file that takes its name."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any] | None:
        return _parsed(_read(str(self._path)))

    def create(self, text: str) -> bool:
        """Whether it was absent and is there now."""
        try:
            with open(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "w") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def take(self, text: str) -> bool:
        """Another's lock, as it was read last, goes. Whether this one stands in its place; if not, it may be created."""
        self._path.unlink(missing_ok=True)
        return False

    def renew(self, text: str) -> None:
        temporary = self._path.with_name(FILE + ".tmp")
        temporary.write_text(text)
        temporary.replace(self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class _Object:
    """The lock in a bucket, with the same methods. Errors: those of storage.errors()."""

    def __init__(self, path: storage.Place) -> None:
        self._path, self._own, self._seen = path, 0, 0  # generations

    def read(self) -> dict[str, Any] | None:
        text, self._seen = storage.read_version(self._path, RENEW)
        return _parsed(text)

    def _write(self, text: str, version: int) -> bool:
        written = storage.write_version(self._path, text, version, RENEW)
        self._own = written or self._own
        return written > 0

    def create(self, text: str) -> bool:
        return self._write(text, 0)

    def take(self, text: str) -> bool:
        return self._write(text, self._seen)

    def renew(self, text: str) -> None:
        self._write(text, self._own)

    def remove(self) -> None:
        storage.remove_version(self._path, self._own, RENEW)


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"


class Lock:
    """Held by the main process from the constructor to `release`; the other processes of a run hold nothing."""

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        """workdir: exists. Errors: UserError when another process is at work there; OSError when a file cannot be written."""
        self._folder = storage.place(workdir)
        path = self._folder / FILE
        self._at = _Object(path) if storage.remote(path) else _File(path)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if not multihost.is_main():
            return
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        mine = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "started": _started(os.getpid()), "since": now}
        self._mine: dict[str, Any] = mine | {"token": uuid.uuid4().hex, "renewed": 0}
        with storage.explained(self._folder):
            while not self._at.create(json.dumps(self._mine)) and not self._take_over():
                pass
        self._thread = threading.Thread(target=self._renew, name="lgrpo-lock", daemon=True)
        self._thread.start()

    def _take_over(self) -> bool:
        """A stale lock goes. Whether this one stands in its place. Errors: UserError when its owner lives."""
        owner = self._at.read()
        if owner is None:  # gone meanwhile, or a crash left half a line of it
            time.sleep(_SETTLE)
            if (owner := self._at.read()) is None:
                return self._at.take(json.dumps(self._mine))
        alive = self._lives(owner)
        if alive:
            raise UserError(
                f"{self._folder}: another run is at work there ({_who(owner)}); wait for it or stop it, or use another --workdir"
            )
        if alive is None or self._at.read() != owner:
            return False
        multihost.say(f"{self._folder}: the lock of {_who(owner)} is stale: that process is gone; going on")
        return self._at.take(json.dumps(self._mine))

    def _lives(self, owner: dict[str, Any]) -> bool | None:
        """Whether the owner is at work; None when the file is gone."""
        if (owner.get("host"), owner.get("boot")) == (self._mine["host"], self._mine["boot"]):
            return _alive_here(int(owner["pid"]), str(owner.get("started", "")))
        multihost.say(f"{self._folder}: locked by {_who(owner)}; looking for {STALE:g} s whether it lives")
        until = time.monotonic() + STALE
        while time.monotonic() < until:
            time.sleep(min(1.0, STALE / 10))
            now = self._at.read()
            if now is not None and now["token"] == owner["token"] and now != owner:
                return True
        now = self._at.read()
        return None if now is None else now != owner

    def _renew(self) -> None:
        while not self._ended.wait(RENEW):
            with contextlib.suppress(*storage.errors()):  # a disk that is full says so where something is lost
                if self._held():
                    self._mine["renewed"] += 1
                    self._at.renew(json.dumps(self._mine))

    def _held(self) -> bool:
        owner = self._at.read()
        return owner is not None and owner["token"] == self._mine["token"]

    def require(self) -> None:
        """Before anything is written that another run could have written. Errors: UserError when the lock is not ours any more."""
        if self._thread is None:
            return
        with storage.explained(self._folder):
            if self._held():
                return
            owner = self._at.read()
            if owner is None and (storage.remote(self._folder) or self._folder.exists()):
                self._at.create(json.dumps(self._mine))  # someone tidied up; nobody else is here
                if self._held():
                    return
                owner = self._at.read()
        if owner is None:
            raise UserError(f"{self._folder}: the folder is gone; nothing more can be saved there")
        raise UserError(f"{self._folder}: {_who(owner)} took this workdir over while this process did not answer; it ends without saving")

    def release(self) -> None:
        """May be called twice."""
        self._ended.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        # What cannot be removed from a bucket that does not answer is stale soon.
        with contextlib.suppress(*(storage.errors() if storage.remote(self._folder) else ())):
            if self._held():
                self._at.remove()
