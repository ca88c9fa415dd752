"""Rows of an evaluation to numbers with intervals, and those to tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lgrpo.evaluation.pass_at_k import Interval, maj_curve, mean_interval, pass_curve, ratio_interval, wilson_interval
from lgrpo.evaluation.shards import Row
from lgrpo.rewards.grade import ERRORS
from lgrpo.types import Finish

LENGTHS = ("chain_tokens", "latent_steps", "answer_tokens", "completion_tokens")
FINISHED = (Finish.EOS.name, Finish.FORCED_EXIT.name)
Columns = dict[str, np.ndarray]


def columns(rows: Sequence[Row]) -> Columns:
    """Rows of one pass as arrays [problems, samples], problems by uid and samples in order.

    Errors: ValueError when problems differ in their number of samples.
    """
    rows = sorted(rows, key=lambda row: (row["uid"], row["sample"]))
    problems = len({row["uid"] for row in rows})
    samples = len(rows) // max(problems, 1)
    grid = np.array([(row["uid"], row["sample"]) for row in rows]).reshape(-1, 2)
    if not problems or len(rows) != problems * samples or not (grid[:, 0].reshape(problems, samples) == grid[::samples, :1]).all():
        raise ValueError(f"{len(rows)} rows are no whole number of samples for each of {problems} problems")
    names = ("uid", "correct", "answer", "category", "finish", "forced", *LENGTHS)
    out = {name: np.array([row[name] for row in rows], object).reshape(problems, samples) for name in names}
    return out | {name: out[name].astype(np.float64) for name in ("correct", *LENGTHS)}


def summarise(rows: Sequence[Row], weights: np.ndarray) -> dict[str, Interval]:
    """All numbers of one pass. weights: bootstrap_weights of its problems.

    pass@k for every k up to the number of samples and maj@k for k > 1; lengths over all completions, and `<length>_finished` over those that
    ended by themselves or after a forced exit; latent_share, the part of all steps that are latent; shares of completions that were
    truncated (cut at the limit), forced (thinking ended by max_latent), not finite, or invalid (truncated or not finite), and
    grade/<category> of the grader's errors. A name whose denominator is 0 is left out.
    """
    table = columns(rows)
    correct, samples = table["correct"], table["correct"].shape[1]
    curve = pass_curve(correct)
    out: dict[str, Interval | None] = {f"pass@{k}": wilson_interval(curve[:, k - 1]) for k in range(1, samples + 1)}
    if samples > 1:
        votes = maj_curve(table["answer"].tolist(), correct)
        out |= {f"maj@{k}": wilson_interval(votes[:, k - 1]) for k in range(2, samples + 1)}
    finish = table["finish"]
    finished = np.isin(finish, FINISHED)
    for name in LENGTHS:
        out[name] = mean_interval(table[name].mean(1), weights)
        out[f"{name}_finished"] = ratio_interval((table[name] * finished).sum(1), finished.sum(1).astype(float), weights)
    out["latent_share"] = ratio_interval(table["latent_steps"].sum(1), table["completion_tokens"].sum(1), weights)
    shares = {
        "truncated_frac": finish == Finish.LENGTH.name,
        "forced_frac": table["forced"].astype(float),
        "nan_frac": finish == Finish.NAN.name,
        "invalid_frac": ~finished,
        **{f"grade/{name}": table["category"] == name for name in ERRORS},
    }
    out |= {name: mean_interval(values.mean(1), weights) for name, values in shares.items()}
    return {name: value for name, value in out.items() if value is not None}


def shown(value: Interval | None, digits: int = 4) -> str:
    """0.9120 [0.8941, 0.9280]."""
    return "-" if value is None else f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def brief(name: str) -> bool:
    """Whether a table for the eye shows this name: of pass@k and maj@k the powers of two, of the grader's errors none."""
    head, _, k = name.partition("@")
    return int(k) & (int(k) - 1) == 0 if head in ("pass", "maj") else not name.startswith("grade/")


def metric_rows(by_pass: dict[str, dict[str, Interval]]) -> list[dict[str, Any]]:
    """A row per metric with a column per pass, for summary_table. The largest k is always shown."""
    longest_first = sorted(by_pass.values(), key=len, reverse=True)  # the others lack pass@k for k > 1
    names = list(dict.fromkeys(name for numbers in longest_first for name in numbers))
    largest = {
        head: max((n for n in names if n.startswith(head)), key=lambda n: int(n.partition("@")[2]), default="")
        for head in ("pass@", "maj@")
    }
    kept = [name for name in names if brief(name) or name in largest.values()]
    return [{"metric": name, **{p: shown(numbers.get(name)) for p, numbers in by_pass.items()}} for name in kept]
