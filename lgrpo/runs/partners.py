"""What the processes of one run tell each other beside their arrays, through the key-value store of JAX's coordination service.

A process that fails says so there before it ends; the others see it within seconds and end with one line. A process that is killed leaves no word:
its sign of life stays away for GONE seconds. On a single process all of this does nothing.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import json
import os
import socket
import sys
import threading
import time
from typing import Any

POLL = 2.0
"""Seconds between two looks at the others, and between two signs of life."""
GONE = 40.0
"""Seconds without a sign of life after which a process counts as gone. JAX itself would abort after 100."""
_LINGER = 15.0
_LOST = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "NCCL", "closed by peer", "reset by peer", "oordination")
_ROOT = "lgrpo"
_watch: _Watch | None = None


def _name(index: int) -> str:
    return f"process {index} ({socket.gethostname()})"


class _Watch:
    def __init__(self, client: Any, processes: int, index: int) -> None:
        self.client, self.processes, self.index = client, processes, index
        self.me, self.beats, self.ending = _name(index), 0, threading.Event()
        self.rounds = collections.Counter[str]()
        self.seen: dict[str, tuple[str, float]] = {}
        client.key_value_set(f"{_ROOT}/name/{index}", self.me)
        self.thread = threading.Thread(target=self._run, name="lgrpo-partners", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.ending.wait(POLL):
            try:
                if reason := self.failed():
                    self.end(reason)
                self._beat()
                if reason := self._silent():
                    self.end(reason)
            except Exception as error:  # the service is gone: with it process 0
                if not self.ending.wait(POLL):
                    self.end(f"process 0, which keeps the run together, does not answer ({' '.join(str(error).split())[:80]})")

    def failed(self) -> str:
        """What the first process that failed said; "" when none did."""
        return next((value for _, value in self.client.key_value_dir_get(f"{_ROOT}/failed")), "")

    def mark(self, word: str) -> None:
        """Leaves a word about this process: done (it finishes), ended (it has read what there was to read)."""
        self.client.key_value_set(f"{_ROOT}/{word}/{self.index}", "1", allow_overwrite=True)

    def marked(self, word: str) -> set[str]:
        """Numbers of the processes that left this word."""
        return {key.rpartition("/")[2] for key, _ in self.client.key_value_dir_get(f"{_ROOT}/{word}")}

    def _beat(self) -> None:
        self.beats += 1
        self.client.key_value_set(f"{_ROOT}/alive/{self.index}", str(self.beats), allow_overwrite=True)

    def _silent(self) -> str:
        now, finished = time.monotonic(), self.marked("done")
        for key, value in self.client.key_value_dir_get(f"{_ROOT}/alive"):
            index = key.rpartition("/")[2]
            if self.seen.get(index, ("", 0.0))[0] != value:
                self.seen[index] = (value, now)
            elif now - self.seen[index][1] > GONE and index not in finished:
                name = dict(self.client.key_value_dir_get(f"{_ROOT}/name")).get(f"{_ROOT}/name/{index}", f"process {index}")
                return f"{name} gave no sign of life for {GONE:g} s: killed, stopped or cut off; its own output may say more"
        return ""

    def end(self, reason: str) -> None:
        """End this process with one line, whatever it is waiting for."""
        self.ending.set()
        with contextlib.suppress(Exception):
            print(f"error: {self.me} ends: {reason}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            self.mark("ended")
        _linger(self, _LINGER / 3)
        os._exit(1)


def watch() -> None:
    """After jax.distributed.initialize, once."""
    global _watch
    from jax._src import distributed

    state = distributed.global_state
    if state.client is not None and state.num_processes > 1:
        _watch = _Watch(state.client, state.num_processes, state.process_id)
        _tame_aborts(_watch.me)
        atexit.register(_leave)  # after JAX's own, so that it runs before it


def _tame_aborts(me: str) -> None:
    """When the service itself is gone JAX's native code aborts the process at once; the last line is then ours, and the exit code 1."""

    def aborted(number: int) -> None:
        os.write(2, f"error: {me} ends: JAX lost its coordination service, so process 0 was killed or cut off\n".encode())
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _tame_aborts.handler = handler  # type: ignore[attr-defined]  # must outlive this call
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(6, ctypes.cast(handler, ctypes.c_void_p))  # SIGABRT


def _linger(watch: _Watch, patience: float) -> None:
    """Process 0 keeps the service: it waits until the others have read what it is about to leave behind."""
    if watch.index:
        return
    until = time.monotonic() + patience
    with contextlib.suppress(Exception):
        while time.monotonic() < until:
            if len(watch.marked("ended") - {"0"}) == watch.processes - 1:
                time.sleep(0.5)  # they are about to be gone
                return
            time.sleep(0.2)


def fail(message: str, code: int) -> None:
    """This process has failed and said why. Tells the others and ends at once, since the barrier at the interpreter's end would wait for them."""
    if _watch is None:
        return
    _watch.ending.set()
    line = " ".join(message.split())[:300]
    with contextlib.suppress(Exception):
        _watch.client.key_value_set(f"{_ROOT}/failed/{_watch.index}", f"{_watch.me} failed: {line}")
        _watch.mark("ended")
    _linger(_watch, _LINGER)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def interrupted(stop: BaseException) -> None:
    """Ctrl-C, or an exit that somebody else's code asked for: tells the others and ends. Returns on a single process, and where the code is 0."""
    if _watch is None or (isinstance(stop, SystemExit) and not stop.code):
        return
    line = f"{type(stop).__name__} {stop}".strip()
    print(f"error: {line}", file=sys.stderr, flush=True)
    fail(line, 130 if isinstance(stop, KeyboardInterrupt) else stop.code if isinstance(getattr(stop, "code", None), int) else 1)


def _leave() -> None:
    """At the interpreter's end: waits for the others while they are still watched, then stops watching.

    The barrier of JAX's shutdown follows. A watcher that went on would find the service gone there and call that a failure; and a thread that is
    inside native code while the interpreter goes takes the whole process with it.
    """
    if _watch is None:
        return
    if error := getattr(sys, "last_value", None):  # of a program that does not end through lgrpo.cli
        fail(f"{type(error).__name__}: {error}", 1)
    with contextlib.suppress(Exception):  # without the service the watcher ends this process
        _watch.mark("done")  # that it is silent once it has left means nothing
    try:
        while not _watch.ending.is_set():
            with contextlib.suppress(Exception):
                if len(_watch.marked("done")) == _watch.processes:
                    break
            time.sleep(min(POLL, 0.2))
    finally:  # Ctrl-C too
        _watch.ending.set()
        _watch.thread.join()


def wait_for_reason(error: BaseException) -> None:
    """An error of a collective is mostly another process's end. Gives the watcher time to learn which, and to end this process with that."""
    if _watch is not None and any(sign in str(error) for sign in _LOST):
        time.sleep(GONE + 3 * POLL)
        if _watch.ending.is_set():  # the watcher has spoken, and is about to end this process
            time.sleep(_LINGER)


def exchange(what: str, mine: dict[str, str], patience: float) -> list[dict[str, str]] | None:
    """The facts of all processes, in their order; all of them exchange a `what` equally often. None on a single process.

    Errors: UserError when one is late.
    """
    if _watch is None:
        return None
    from lgrpo.errors import UserError

    _watch.rounds[what] += 1
    key = f"{_ROOT}/facts/{what}/{_watch.rounds[what]}"
    _watch.client.key_value_set(f"{key}/{_watch.index}", json.dumps(mine | {"host": _watch.me}))
    found = []
    for index in range(_watch.processes):
        try:
            found.append(json.loads(_watch.client.blocking_key_value_get(f"{key}/{index}", int(1000 * patience))))
        except Exception as error:
            raise UserError(f"{_watch.me}: process {index} did not get as far as comparing {what} within {patience:g} s") from error
    return found
