"""Output that cannot end a run: a closed pipe, a terminal that is gone and a descriptor that was never open are as good as /dev/null."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Tolerant:
    """A text stream whose errors are swallowed. After the first one its descriptor leads to /dev/null, so that native code may write to it too."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _calm(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self._stream, method)(*args)
        except (OSError, ValueError):  # ValueError: closed
            with contextlib.suppress(OSError, ValueError):
                sink = os.open(os.devnull, os.O_WRONLY)
                os.dup2(sink, self._stream.fileno())
                os.close(sink)
            return 0

    def write(self, text: str) -> int:
        self._calm("write", text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._calm("flush")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_standard_descriptors() -> None:
    """After `2>&-` the next file that is opened would be number 2, and what native code logs would end in it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            sink = os.open(os.devnull, os.O_RDWR)
            if sink != number:
                os.dup2(sink, number)
                os.close(sink)


@contextlib.contextmanager
def protected() -> Iterator[None]:
    """sys.stdout and sys.stderr as Tolerant streams."""
    open_standard_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        Tolerant(open(number, "w", closefd=False) if stream is None else stream)  # noqa: SIM115
        for number, stream in zip((1, 2), before, strict=True)
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # now, since the interpreter would complain at its end
        sys.stdout, sys.stderr = before
