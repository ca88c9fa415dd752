"""How long JAX traced and compiled, by its own events. Compilations happen inside whatever calls a program first, and belong to none of a step's phases."""

from __future__ import annotations

from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"  # a program from the compilation cache counts too
_EVENTS = (_COMPILED, "/jax/core/compile/jaxpr_to_mlir_module_duration")


class CompileClock:
    """Listens from when it is made until close(). Tracing is left out: its events contain each other."""

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

    def lap(self) -> float:
        """Seconds since the last lap."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._heard)
