"""Alternating measurement: the variants take turns, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def alternate(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Median, quartiles and all seconds of each variant after one warm-up call (reported apart: it compiles)."""
    first, seconds = {}, {name: [] for name in variants}
    for name, work in variants.items():
        start = time.perf_counter()
        jax.block_until_ready(work())
        first[name] = time.perf_counter() - start
    for _ in range(repeats):
        for name, work in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(work())
            seconds[name].append(time.perf_counter() - start)
    out = {}
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4)
        out[name] = {"median_s": median, "quartiles_s": [low, high], "first_s": first[name], "seconds": values}
    return out
