"""Timing: one warm-up call, reported apart (it compiles), then the measured ones. Wall seconds, and CPU seconds of the whole process beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


class Kept:
    """A call that remembers its last result, so that what was timed can be checked without another call."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.last = work, None

    def __call__(self) -> None:
        self.last = None  # the old result is freed before the new one exists, as in a loop that trains
        self.last = self.work()


def _once(work: Callable[[], Any]) -> tuple[float, float]:
    """(wall, CPU) seconds of one call. CPU seconds far below wall seconds times cores say that others had the machine."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(work: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds of every call of `work`, which returns only when its result is there."""
    return alternate({"": work}, repeats)[""]


def alternate(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """The variants take turns, so that a busy moment of the machine hits all of them. Returns first_s, seconds, cpu_seconds for each."""
    out: dict[str, dict[str, Any]] = {}
    for name, work in variants.items():
        out[name] = {"first_s": _once(work)[0], "seconds": [], "cpu_seconds": []}
    for _ in range(repeats):
        for name, work in variants.items():
            wall, cpu = _once(work)
            out[name]["seconds"].append(wall)
            out[name]["cpu_seconds"].append(cpu)
    return out


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles (with a single value all three are it)."""
    if len(seconds) == 1:
        return {"median_s": seconds[0], "quartiles_s": [seconds[0]] * 2}
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median_s": middle, "quartiles_s": [low, high]}
