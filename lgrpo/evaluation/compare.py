"""A paired test between two evaluations of the same problems: python -m lgrpo compare A B."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

import numpy as np

from lgrpo.errors import UserError
from lgrpo.evaluation.about import differences
from lgrpo.evaluation.pass_at_k import bootstrap_weights, mean_interval, wilson_interval
from lgrpo.evaluation.shards import Row, read_rows
from lgrpo.evaluation.summary import columns, shown
from lgrpo.runs.metrics import summary_table
from lgrpo.runs.storage import Place

RESULT = "eval.jsonl"


def sign_test(differences: np.ndarray) -> tuple[int, int, float]:
    """(problems above 0, below 0, two-sided exact p) of paired differences; ties say nothing. On one sample a problem this is McNemar's exact test."""
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    total = better + worse
    tail = sum(math.comb(total, i) for i in range(min(better, worse) + 1))
    return better, worse, min(1.0, 2 * tail / 2**total)  # exact integers, whatever the size


def paired(a: np.ndarray, b: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Difference b - a of accuracies per problem, float [problems] each: interval of a paired bootstrap over problems, and the sign test."""
    difference = b - a
    # In slices, so that the weights of many resamples of a large set do not exist at once.
    draws = [bootstrap_weights(len(a), min(1000, resamples - at), seed + at) for at in range(0, resamples, 1000)]
    better, worse, p = sign_test(difference)
    return {
        "problems": len(a),
        "a": wilson_interval(a),
        "b": wilson_interval(b),
        "difference": mean_interval(difference, np.concatenate(draws)),
        "better": better,
        "worse": worse,
        "p": p,
    }


def find(path: Place) -> dict[str, Place]:
    """Files by data set. path: an eval.jsonl, a folder with one, or a suite's folder with one in each data set's folder.

    Errors: UserError when there is none.
    """
    files = {"": path} if path.is_file() else {"": path / RESULT} if (path / RESULT).is_file() else {}
    if not files and path.is_dir():
        files = {file.parent.name: file for file in sorted(path.glob(f"*/{RESULT}"))}
        if "eval" in files:  # a workdir: its own evaluation, and perhaps others beside it
            files = {"": files.pop("eval"), **files}
    if not files:
        raise UserError(f"{path}: no {RESULT} there or one level below; give the result of `python -m lgrpo eval`")
    return files


def load(path: Place) -> dict[str, dict[str, list[Row]]]:
    """Rows by data set and pass. path and errors: as find."""
    out: dict[str, dict[str, list[Row]]] = {}
    for name, file in find(path).items():
        by_pass: dict[str, list[Row]] = defaultdict(list)
        for row in read_rows(file):
            by_pass[row["pass"]].append(row)
        out[name] = dict(by_pass)
    return out


def _accuracies(rows: list[Row], other: list[Row], where: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean correctness by problem on both sides, and samples per problem. Errors: UserError when the problems differ."""
    gold, theirs = ({row["uid"]: row["gold"] for row in side} for side in (rows, other))
    if gold != theirs:
        only = len(gold.keys() ^ theirs.keys())
        changed = sum(gold[uid] != theirs[uid] for uid in gold.keys() & theirs.keys())
        raise UserError(
            f"{where}: not the same problems: {only} are on one side only, {changed} have another gold answer; evaluate both on one set"
        )
    a, b = columns(rows)["correct"], columns(other)["correct"]
    return a.mean(1), b.mean(1), max(a.shape[1], b.shape[1])


def compare(a: Place, b: Place) -> list[dict[str, Any]]:
    """A row per data set and pass that both sides have. Errors: UserError when they have none in common or differ in their problems."""
    left, right = load(a), load(b)
    out = []
    for name in (n for n in left if n in right):
        for how in (p for p in left[name] if p in right[name]):
            before, after, samples = _accuracies(left[name][how], right[name][how], f"{name or a.name}, {how}")
            test = "McNemar exact" if samples == 1 else "sign test over problems"
            out.append({"data": name or "-", "pass": how, **paired(before, after), "test": test})
    if not out:
        raise UserError(f"{a} and {b} have no data set and pass in common: {_names(left)} there, {_names(right)} here")
    return out


def _about(file: Place) -> dict[str, Any]:
    """What the evaluation of these rows says that it was of; empty where it does not."""
    summary = file.with_name("eval.json")
    try:
        return dict(json.loads(summary.read_text(encoding="utf-8")).get("about", {}))
    except (OSError, ValueError):
        return {}


def warnings(a: Place, b: Place) -> list[str]:
    """In what the two sides differ beside their weights."""
    left, right = find(a), find(b)
    return [
        f"{name + ': ' if name else ''}{d}" for name in left if name in right for d in differences(_about(left[name]), _about(right[name]))
    ]


def _names(found: dict[str, dict[str, list[Row]]]) -> str:
    return ", ".join(f"{name or 'eval'}:{how}" for name, by_pass in found.items() for how in by_pass)


def run(a: Place, b: Place) -> int:
    """Prints the table. Returns the exit code."""
    found = compare(a, b)
    rows = [
        {
            **{name: row[name] for name in ("data", "pass", "problems")},
            **{name: shown(row[name]) for name in ("a", "b", "difference")},
            "better": row["better"],
            "worse": row["worse"],
            "p": f"{row['p']:.3g}",
            "test": row["test"],
        }
        for row in found
    ]
    print(f"a: {a}\nb: {b}\n\n{summary_table(rows, list(rows[0]))}\n")
    if found := warnings(a, b):
        print(f"warning: a and b differ in more than their weights: {'; '.join(found)}\n")
    print("difference is b - a, with a 95 % interval of a paired bootstrap over problems; better and worse count problems; p is two-sided")
    return 0
