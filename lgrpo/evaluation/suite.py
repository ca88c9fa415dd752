"""Benchmarks by name. Where a benchmark comes from is decided in benchmark_config and nowhere else."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Literal

from lgrpo.config import ExperimentConfig, Grader
from lgrpo.errors import UserError


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """group: the paper's low- or high-difficulty setting; grader: used where data.grader is `auto`."""

    group: Literal["low", "high"]
    grader: Grader = "auto"


BENCHMARKS = {
    "gsm8k_aug": Benchmark("low"),
    "gsm_hard": Benchmark("low"),
    "svamp": Benchmark("low"),
    "multiarith": Benchmark("low"),
    "math500": Benchmark("high", "math"),
    "aime24": Benchmark("high", "math"),
    "aime25": Benchmark("high", "math"),
    "gpqa_diamond": Benchmark("high", "choice"),
}


def suite_names(wanted: Sequence[str]) -> list[str]:
    """Benchmarks behind `low`, `high` and names, each once, in order. Errors: UserError for an unknown name, with the nearest one."""
    out: list[str] = []
    for name in wanted:
        group = [n for n, b in BENCHMARKS.items() if b.group == name]
        if not group and name not in BENCHMARKS:
            near = difflib.get_close_matches(name, ["low", "high", *BENCHMARKS], n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose low, high or some of {', '.join(BENCHMARKS)}"
            raise UserError(
                f"--suite: no benchmark {name!r}; {hint} (any other file: --data.source jsonl --data.path DIR --data.eval-split NAME)"
            )
        out += group or [name]
    return list(dict.fromkeys(out))


def benchmark_config(cfg: ExperimentConfig, name: str) -> ExperimentConfig:
    """`cfg` with the benchmark as its evaluation data: <data.path>/<name>.jsonl. Errors: UserError when data.path is not set."""
    if not cfg.data.path:
        raise UserError(f"--suite: {name} is read from <data.path>/{name}.jsonl; set --data.path")
    grader = BENCHMARKS[name].grader if cfg.data.grader == "auto" else cfg.data.grader
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, source="jsonl", eval_split=name, grader=grader))
