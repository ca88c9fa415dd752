"""Compiled steps: a function of arrays and of the part of the config that it declares to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from lgrpo.config import ExperimentConfig
from lgrpo.config.reads import Reads, Wants


class Program:
    """jit of function(*arrays, cfg=view): called with the whole config, compiled for what `wants` takes of it.

    facts: static values derived from the config, by name. donate: names of arguments whose buffers the result may take.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        wants: Wants,
        *,
        facts: Callable[[ExperimentConfig], dict[str, Any]] = lambda _: {},
        donate: Sequence[str] = (),
    ) -> None:
        self.wants, self._facts = wants, facts
        self.__doc__ = function.__doc__
        self._jitted = jax.jit(function, donate_argnames=tuple(donate))

    def view(self, cfg: ExperimentConfig) -> Reads:
        """What the function gets to see of `cfg`."""
        return self.wants.of(cfg, **self._facts(cfg))

    def __call__(self, *args: Any, cfg: ExperimentConfig, **more: Any) -> Any:
        return self._jitted(*args, cfg=self.view(cfg), **more)

    def trace(self, *args: Any, cfg: ExperimentConfig, **more: Any) -> Any:
        """As that of jax.jit."""
        return self._jitted.trace(*args, cfg=self.view(cfg), **more)

    def lower(self, *args: Any, cfg: ExperimentConfig, **more: Any) -> Any:
        """As that of jax.jit."""
        return self._jitted.lower(*args, cfg=self.view(cfg), **more)
