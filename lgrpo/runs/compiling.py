"""How long JAX traced and compiled, by its own events. Compilations happen inside whatever calls a program first, and belong to none of a step's phases."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"  # a program from the compilation cache counts too
_EVENTS = (_COMPILED, "/jax/core/compile/jaxpr_to_mlir_module_duration")
_LONG = 1.0
"""Seconds from which on a compilation leaves memory that is worth a look."""


def give_back() -> None:
    """To the system, memory that is free: glibc keeps it, after the compilation of an update some 300 MiB, and on CPU that lies beside the run's arrays."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


class CompileClock:
    """Listens from when it is made until close(), and gives back what a compiler has freed. Tracing is left out: its events contain each other."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Since the last lap."""
        self.total = 0.0
        """Since the clock was made."""
        self.programs = 0
        """Compiled or read from the cache since the clock was made."""
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration: float, **_: Any) -> None:
        if event in _EVENTS:
            self.seconds += duration
            self.total += duration
            self.programs += event == _COMPILED
        if event == _COMPILED and duration > _LONG:
            give_back()

    def lap(self) -> float:
        """Seconds since the last lap."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._heard)
