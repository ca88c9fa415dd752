"""One run per workdir: a file says who is at work there, and is renewed while that process lives.

The file is created only if it is absent. A lock is stale when its process is gone: on this machine that is looked up; another machine's lock is
watched, and is stale when nobody renews it for STALE seconds, whatever the two clocks say. On a bucket nothing is renamed: objects are written
whole, and an owner reads the file back before it believes that it owns it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from typing import Any

from etils import epath

from lgrpo.errors import UserError
from lgrpo.runs import multihost

FILE = "lock.json"
RENEW = 10.0
"""Seconds between two signs of life."""
STALE = 45.0
"""Seconds without one after which the process of another machine counts as gone."""
_SETTLE = 1.0  # seconds until an object that two processes wrote at once is the last writer's


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


def _create(path: epath.Path, text: str) -> bool:
    """Write a file that was not there. False when it was."""
    local = "://" not in str(path)
    try:
        if local:
            with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "w") as file:
                file.write(text)
            return True
        if path.exists():
            return False
        path.write_text(text)
    except FileExistsError:
        return False
    time.sleep(_SETTLE)
    return _content(path) == json.loads(text)


def _content(path: epath.Path) -> dict[str, Any] | None:
    """What the file says; None when it is gone or not whole (it is being written)."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "token" in found else None


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"


class Lock:
    """Held by the main process from the constructor to `release`; the other processes of a run hold nothing."""

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        """workdir: exists. Errors: UserError when another process is at work there."""
        self._path = epath.Path(workdir) / FILE
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if not multihost.is_main():
            return
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        mine = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "started": _started(os.getpid()), "since": now}
        self._mine: dict[str, Any] = mine | {"token": uuid.uuid4().hex, "renewed": 0}
        while not _create(self._path, json.dumps(self._mine)):
            self._take_over()
        self._thread = threading.Thread(target=self._renew, name="lgrpo-lock", daemon=True)
        self._thread.start()

    def _take_over(self) -> None:
        """Remove a stale lock. Errors: UserError when its owner lives."""
        owner = _content(self._path)
        if owner is None:  # gone meanwhile, or a crash left half a line of it
            time.sleep(_SETTLE)
            if (owner := _content(self._path)) is None:
                self._path.unlink(missing_ok=True)
                return
        alive = self._lives(owner)
        if alive:
            raise UserError(
                f"{self._path.parent}: another run is at work there ({_who(owner)}); wait for it or stop it, or use another --workdir"
            )
        if alive is None or _content(self._path) != owner:
            return
        multihost.say(f"{self._path.parent}: the lock of {_who(owner)} is stale: that process is gone; going on")
        self._path.unlink(missing_ok=True)

    def _lives(self, owner: dict[str, Any]) -> bool | None:
        """Whether the owner is at work; None when the file is gone."""
        if (owner.get("host"), owner.get("boot")) == (self._mine["host"], self._mine["boot"]):
            return _alive_here(int(owner["pid"]), str(owner.get("started", "")))
        multihost.say(f"{self._path.parent}: locked by {_who(owner)}; looking for {STALE:g} s whether it lives")
        until = time.monotonic() + STALE
        while time.monotonic() < until:
            time.sleep(min(1.0, STALE / 10))
            now = _content(self._path)
            if now is not None and now["token"] == owner["token"] and now != owner:
                return True
        now = _content(self._path)
        return None if now is None else now != owner

    def _renew(self) -> None:
        while not self._ended.wait(RENEW):
            with contextlib.suppress(OSError):  # a disk that is full says so where something is lost
                self._sign()

    def _sign(self) -> None:
        if not self._held():
            return
        self._mine["renewed"] += 1
        if "://" in str(self._path):
            self._path.write_text(json.dumps(self._mine))
            return
        temporary = self._path.with_name(FILE + ".tmp")
        temporary.write_text(json.dumps(self._mine))
        temporary.replace(self._path)

    def _held(self) -> bool:
        owner = _content(self._path)
        return owner is not None and owner["token"] == self._mine["token"]

    def require(self) -> None:
        """Before anything is written that another run could have written. Errors: UserError when the lock is not ours any more."""
        if self._thread is None or self._held():
            return
        owner = _content(self._path)
        if owner is None and self._path.parent.exists():
            _create(self._path, json.dumps(self._mine))  # someone tidied up; nobody else is here
            if self._held():
                return
            owner = _content(self._path)
        if owner is None:
            raise UserError(f"{self._path.parent}: the folder is gone; nothing more can be saved there")
        raise UserError(
            f"{self._path.parent}: {_who(owner)} took this workdir over while this process did not answer; it ends without saving"
        )

    def release(self) -> None:
        """May be called twice."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._held():
                self._path.unlink(missing_ok=True)
