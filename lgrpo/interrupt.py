"""Ctrl-C and preemption: the first signal asks for a checkpoint, the second one ends the process at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved, run the same command again to continue
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Context manager. Poll `requested` between steps (and `if flag: ...`); when it is set, save and exit with EXIT_PREEMPTED.

    Outside the main thread Python allows no handlers, and the flag is then only set by hand.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.requested

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for s, handler in self._before.items():
            # None: the previous handler was not installed from Python, and Python cannot put it back.
            signal.signal(s, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)
        self.requested = True
        print(
            f"\n{signal.Signals(number).name}: will save and stop after this step; once more to stop at once", file=sys.stderr, flush=True
        )
