"""Ctrl-C, preemption and lost terminals: the first signal asks for a checkpoint, a second SIGINT or SIGTERM ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from lgrpo.runs import multihost

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved, run the same command again to continue
_INSISTING = (signal.SIGINT, signal.SIGTERM)
# A terminal that goes away sends SIGHUP more than once, and SLURM's --signal=USR1@120 is followed by a SIGTERM: these only ask.
_ASKING = (signal.SIGHUP, signal.SIGUSR1)


class StopFlag:
    """Context manager. Poll `agreed()` between device calls; when it is true, save and exit with EXIT_PREEMPTED.

    Outside the main thread Python allows no handlers, and the flag is then only set by hand.
    """

    def __init__(self) -> None:
        self.requested = False
        """A signal has come to this process. With several processes, decide by `agreed`."""
        self._before: dict[signal.Signals, Any] = {}
        self._polls = 0
        self._pipe: tuple[int, int] | None = None
        self._old_wakeup = -1
        self._watcher: threading.Thread | None = None

    def __bool__(self) -> bool:
        return self.requested

    def agreed(self) -> bool:
        """Whether to stop, the same on every process: a signal or a preemption notice has come to one of them. All must call it equally often.

        One small exchange between hosts; nothing but a look at the flag on a single one.
        """
        self._polls += 1
        # The notice that JAX's own service caught, for instance before this flag was there.
        noticed = multihost.preemption_noticed(self._polls)
        stop = multihost.agree(self.requested or noticed)
        if stop:  # never back to False: a signal may have come meanwhile, for the next poll
            self.requested = True
        return stop

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            self._watch()
            heard = [s for s in (*_INSISTING, *_ASKING) if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]  # nohup
            self._before = {s: signal.signal(s, self._handle) for s in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for s, handler in self._before.items():
            # None: the previous handler was not installed from Python, and Python cannot put it back.
            signal.signal(s, signal.SIG_DFL if handler is None else handler)
        self._before = {}
        if self._pipe is not None:
            signal.set_wakeup_fd(self._old_wakeup, warn_on_full_buffer=False)
            read, write = self._pipe
            os.close(write)  # ends the watcher
            self._watcher.join()
            os.close(read)
            self._pipe = None

    def _watch(self) -> None:
        """Python's handlers wait for the main thread, which may sit in a long device call; this thread does not."""
        self._pipe = read, write = os.pipe()
        os.set_blocking(write, False)
        self._old_wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=_end_at_second, args=(read,), name="lgrpo-signals", daemon=True)
        self._watcher.start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = True
            more = "once more" if number in _INSISTING else "SIGTERM twice"
            print(
                f"\n{signal.Signals(number).name}: will save and stop after this call; {more} to stop at once",
                file=sys.stderr,
                flush=True,
            )


def _end_at_second(pipe: int) -> None:
    """Ends the process at the second signal whose number comes through `pipe`. Unfinished files have temporary names, so nothing is half there."""
    seen = 0
    while number := os.read(pipe, 1):
        seen += number[0] in _INSISTING
        if seen > 1:
            with contextlib.suppress(OSError):
                os.write(2, b"ended at once, nothing more was saved; run the same command again\n")
            os._exit(128 + number[0])
