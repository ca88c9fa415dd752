"""Benchmarks by name. What they are is in lgrpo.data.registry; where an evaluation reads them from is decided in benchmark_config and nowhere else."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

from lgrpo.config import ExperimentConfig
from lgrpo.data.registry import DATA_SETS
from lgrpo.errors import UserError
from lgrpo.runs import storage

SUITES = {
    "low": ("gsm8k_aug", "gsm_hard", "svamp", "multiarith"),
    "high": ("math500", "aime24", "aime25", "gpqa_diamond"),
}
"""The paper's two settings."""
BENCHMARKS = tuple(name for name, known in DATA_SETS.items() if "test" in known.splits)
"""Every registered data set that has a test split."""


def suite_names(wanted: Sequence[str]) -> list[str]:
    """Benchmarks behind `low`, `high` and names, each once, in order. Errors: UserError for an unknown name, with the nearest one."""
    out: list[str] = []
    for name in wanted:
        group = SUITES.get(name, ())
        if not group and name not in BENCHMARKS:
            near = difflib.get_close_matches(name, ["low", "high", *BENCHMARKS], n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose low, high or some of {', '.join(BENCHMARKS)}"
            raise UserError(
                f"--suite: no benchmark {name!r}; {hint} (any other file: --data.source jsonl --data.path DIR --data.eval-split NAME)"
            )
        out += group or (name,)
    return list(dict.fromkeys(out))


def benchmark_config(cfg: ExperimentConfig, name: str) -> ExperimentConfig:
    """`cfg` with the benchmark as its evaluation data and its grader where data.grader is `auto`.

    One rule for files: <data.path>/<name>_test.jsonl. data.source jsonl: as it stands there, whatever it holds; any other source: checked against the
    registry, other kinds of files too, or downloaded where data.path is empty. Errors: UserError when jsonl has no such file.
    """
    own = cfg.data.source == "jsonl"
    file = f"{name}_test.jsonl"
    if own and not (cfg.data.path and (storage.place(cfg.data.path) / file).is_file()):
        raise UserError(
            f"--suite: {cfg.data.path or '<data.path>'}/{file} does not exist; with --data.source jsonl, {name} is read from there"
        )
    grader = DATA_SETS[name].grader if cfg.data.grader == "auto" else cfg.data.grader
    data = dataclasses.replace(cfg.data, eval_split=f"{name}_test" if own else f"{name}/test", grader=grader)
    return dataclasses.replace(cfg, data=data)
