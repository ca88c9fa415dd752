"""The clock of compilations. Breaks when a program that is compiled is not heard, or one that is not compiled is."""

import ctypes
import json
import resource
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lgrpo.config import LoggingConfig
from lgrpo.runs import compiling
from lgrpo.runs.compiling import CompileClock
from lgrpo.runs.metrics import MetricsWriter


def test_counts_programs_and_seconds_once():
    data = np.arange(3.0)
    clock = CompileClock()
    try:
        twice = jax.jit(lambda x: 2 * x)
        twice(data)
        assert clock.programs == 1 and clock.seconds > 0
        seconds = clock.lap()
        twice(data)
        assert seconds > 0 and clock.programs == 1 and clock.lap() == 0
    finally:
        clock.close()
    jax.jit(lambda x: 3 * x)(data)
    assert clock.programs == 1 and clock.lap() == 0


def test_a_line_has_what_was_compiled_since_the_last(tmp_path):
    clock = CompileClock()
    try:
        with MetricsWriter(tmp_path, LoggingConfig(tensorboard=False), clock=clock) as writer:
            jax.jit(lambda x: 5 * x)(np.arange(3.0))
            writer.write(1, {"time/step_s": 1.0})
            writer.write(2, {"time/step_s": 1.0})
    finally:
        clock.close()
    first, second = (json.loads(line)["time/compile_s"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first > 0 and second == 0


def test_memory_is_given_back_after_a_long_compilation_alone(monkeypatch):
    given = []
    monkeypatch.setattr(compiling, "give_back", lambda: given.append(1))
    clock = compiling.CompileClock()
    try:
        for event, seconds, calls in ((compiling._COMPILED, 0.1, 0), (compiling._EVENTS[1], 9.0, 0), (compiling._COMPILED, 3.0, 1)):
            jax.monitoring.record_event_duration_secs(event, seconds)
            assert len(given) == calls, event
    finally:
        clock.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_is_free_goes_to_the_system():
    """100 MB in pieces below what malloc maps by itself, with one in use above them, so that the heap cannot shrink."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = [libc.malloc(50_000) for _ in range(2001)]
    for piece in pieces:
        ctypes.memset(piece, 1, 50_000)
    for piece in pieces[:-1]:
        libc.free(piece)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    compiling.give_back()
    assert resident() < before - 50e6
    libc.free(pieces[-1])
