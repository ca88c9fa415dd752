"""The clock of compilations. Breaks when a program that is compiled is not heard, or one that is not compiled is."""

import json

import jax
import numpy as np

from lgrpo.config import LoggingConfig
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
