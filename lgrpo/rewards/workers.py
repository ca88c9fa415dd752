"""Work in processes of its own, each piece under a hard time limit: comparison of LaTeX answers, and rewards that ask for it.

Workers start when the first answer needs one and stay.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import json
import os
import selectors
import time
from collections.abc import Sequence

from lgrpo.errors import UserError
from lgrpo.rewards import math_worker
from lgrpo.runs.worker import start

MEMORY_MB = 1024
"""A worker may grow by this much."""
START_SECONDS = 120.0
"""Longest start of a worker: it loads sympy, perhaps from a cold disk."""
PATIENCE, HURRY = 32, 0.1
"""After this many timeouts in one call, further answers get this part of their time: a policy that writes nothing but monsters cannot stall a run."""
CACHE = 65_536
"""Outcomes remembered by (gold, answer): the samples of a group often agree."""

Pair = tuple[str, ...]


class _Worker:
    """One process. `pair` is what it works on; None while it is idle. Times are seconds of time.monotonic."""

    def __init__(self, memory_mb: int, seconds: float, module: str = "", more: Sequence[str] = ()) -> None:
        """module: what to run, with the limits and `more` as arguments; default: the comparison of LaTeX."""
        self.process = start(module or math_worker.__name__, memory_mb, int(seconds) + 2, *more)
        self.ready = False
        self.pair: Pair | None = None
        self.deadline = time.monotonic() + START_SECONDS
        self._partial = b""

    def send(self, pair: Pair, seconds: float) -> None:
        """Hands over one pair. Raises OSError when the process is dead."""
        self.pair, self.deadline = pair, time.monotonic() + seconds
        self.process.stdin.write(json.dumps(pair).encode() + b"\n")  # ASCII; far below what a pipe holds
        self.process.stdin.flush()

    def receive(self) -> str | None:
        """The reply, or None when it is not complete yet. Raises EOFError when the process is gone."""
        part = os.read(self.process.stdout.fileno(), 4096)
        if not part:
            raise EOFError
        self._partial += part
        if not self._partial.endswith(b"\n"):
            return None
        reply, self._partial = self._partial.decode().strip(), b""
        return reply

    def kill(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was still buffered has no reader
                pipe.close()


class WorkerPool:
    """`size` workers. Not thread-safe."""

    def __init__(self, size: int, seconds: float, memory_mb: int = MEMORY_MB, module: str = "", more: Sequence[str] = ()) -> None:
        """seconds: time limit of one answer. module, more: of another worker than the one that compares LaTeX."""
        self._size, self._seconds, self._memory, self._program = size, seconds, memory_mb, (module, more)
        self._workers: list[_Worker] = []
        self._known: collections.OrderedDict[Pair, str] = collections.OrderedDict()
        self._selector = selectors.DefaultSelector()
        self._todo: collections.deque[Pair] = collections.deque()
        self._crashed: set[Pair] = set()

    def judge(self, pairs: Sequence[Pair]) -> list[str]:
        """What the worker says to each (gold, answer), in order: correct, wrong or unparsable; or timeout or crash. Each pair is compared once and
        remembered.

        Takes at most ceil(new pairs / size) * seconds (less after PATIENCE timeouts), and a worker's start after each timeout or crash.
        Errors: UserError when workers cannot be started (math-verify is not installed).
        """
        todo = self._todo = collections.deque(dict.fromkeys(pair for pair in pairs if pair not in self._known))
        self._crashed.clear()
        outcome = {pair: self._known[pair] for pair in pairs if pair in self._known}
        while todo or any(worker.pair for worker in self._workers):
            while len(self._workers) < min(self._size, len(todo) + sum(1 for w in self._workers if w.pair)):
                self._start()
            for worker in list(self._workers):
                if todo and worker.ready and worker.pair is None:
                    self._hand_out(worker, todo, outcome)
            self._wait(outcome)
        self._known.update(outcome)
        while len(self._known) > CACHE:
            self._known.popitem(last=False)
        return [outcome[pair] for pair in pairs]

    def close(self) -> None:
        """Ends all workers; the next judge() starts new ones."""
        for worker in list(self._workers):
            self._drop(worker)

    def _start(self) -> None:
        worker = _Worker(self._memory, self._seconds, *self._program)
        self._workers.append(worker)
        self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)

    def _drop(self, worker: _Worker) -> None:
        self._selector.unregister(worker.process.stdout)
        self._workers.remove(worker)
        worker.kill()

    def _hand_out(self, worker: _Worker, todo: collections.deque[Pair], outcome: dict[Pair, str]) -> None:
        """The next pair. A worker that died while it had nothing to do (an administrator, the kernel) is replaced, and no answer pays for it."""
        slow = sum(why == "timeout" for why in outcome.values())
        try:
            if worker.process.poll() is not None:
                raise ProcessLookupError
            worker.send(todo[0], self._seconds * (HURRY if slow >= PATIENCE else 1.0))
            todo.popleft()
        except OSError:
            self._drop(worker)

    def _fail(self, worker: _Worker, why: str, outcome: dict[Pair, str]) -> None:
        """Removes a worker that is dead or too slow; judge() starts another one where there is work."""
        if not worker.ready:
            self.close()
            if self._program[0]:
                raise UserError(
                    f"data.reward: its worker process does not start; see what `python -m {' '.join((self._program[0], '100', '1', *self._program[1]))}` says"
                )
            raise UserError(
                "data.grader: the LaTeX grader does not start; see what `python -c 'import math_verify'` says, or set data.grader=numeric"
            )
        if worker.pair is not None and why == "crash" and worker.pair not in self._crashed:
            self._crashed.add(worker.pair)  # once more: the system may have killed the process for another one's memory
            self._todo.append(worker.pair)
        elif worker.pair is not None:
            outcome[worker.pair] = why
        self._drop(worker)

    def _wait(self, outcome: dict[Pair, str]) -> None:
        """Takes in replies until the next deadline, and ends workers that passed theirs."""
        busy = [w for w in self._workers if w.pair or not w.ready]
        if not busy:
            return
        pause = max(0.0, min(w.deadline for w in busy) - time.monotonic())
        for key, _ in self._selector.select(pause):
            worker: _Worker = key.data
            try:
                reply = worker.receive()
            except (EOFError, OSError):
                self._fail(worker, "crash", outcome)
                continue
            if reply is None:
                continue
            if not worker.ready:
                worker.ready = True
            elif worker.pair is not None:
                outcome[worker.pair], worker.pair = reply, None
        for worker in busy:
            if worker in self._workers and (worker.pair or not worker.ready) and time.monotonic() >= worker.deadline:
                self._fail(worker, "timeout", outcome)


@functools.lru_cache(maxsize=4)
def shared_pool(size: int, seconds: float, module: str = "", more: tuple[str, ...] = ()) -> WorkerPool:
    """The pool of this process for these settings."""
    pool = WorkerPool(size, seconds, module=module, more=more)
    atexit.register(pool.close)
    return pool
