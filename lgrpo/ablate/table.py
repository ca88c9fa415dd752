"""One table of an ablation: every metric of every cell, and its paired difference to the base cell. The same files from the same runs."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from lgrpo.ablate.grid import Grid, Job
from lgrpo.ablate.jobs import finished
from lgrpo.config.overrides import diff
from lgrpo.evaluation.pass_at_k import bootstrap_weights, interval, pass_curve
from lgrpo.evaluation.shards import read_rows
from lgrpo.evaluation.summary import LENGTHS, columns
from lgrpo.runs import markdown
from lgrpo.runs.metrics import read_metrics
from lgrpo.runs.storage import Place, write_text

PASSES = ("noise_free", "sampled")
LAST = 0.1
"""Part of the training's steps, the last ones, that metrics of training are averaged over."""
_APART = ("time/", "perf/", "eval/")  # no results of the method, or not of training
_SHOWN = ("sampled/latent_steps", "sampled/answer_tokens", "sampled/invalid_frac", "train/reward/mean", "train/rollout/latent_share")
_RESAMPLES = 10
"""Thousands of resamples of the problems, as many as `compare` makes."""
Interval = dict[str, Any]
PerProblem = dict[str, np.ndarray]


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and 95 % t interval over seeds. One seed has no interval: low and high are None."""
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return {"value": mean, "low": None, "high": None}
    half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / np.sqrt(len(x)))
    return {"value": mean, "low": mean - half, "high": mean + half}


@functools.cache
def _weights(problems: int, part: int) -> np.ndarray:
    return bootstrap_weights(problems, 1000, 1000 * part)  # the draws of `compare`


def over_problems(differences: Sequence[np.ndarray]) -> Interval:
    """Paired bootstrap over problems, seeds as they are: per-problem differences [problems] of every seed, all of the same problems."""
    mean = np.mean(differences, axis=0)
    draws = np.concatenate([_weights(len(mean), part) @ mean / len(mean) for part in range(_RESAMPLES)])
    return interval(float(mean.mean()), draws)


def training_metrics(folder: Place) -> dict[str, float]:
    """Means over the last tenth of the steps that were logged. What is never finite there is left out."""
    rows = [row for row in read_metrics(folder) if any(isinstance(v, int | float) and k.startswith("reward/") for k, v in row.items())]
    if not rows:
        return {}
    tail = [row for row in rows if row["step"] > (1 - LAST) * rows[-1]["step"]] or rows[-1:]
    names = dict.fromkeys(name for row in tail for name in row if "/" in name and not name.startswith(_APART))
    found = {name: [row[name] for row in tail if isinstance(row.get(name), int | float)] for name in names}
    return {f"train/{name}": float(np.mean(values)) for name, values in found.items() if values}


class Result:
    """Numbers of one finished job."""

    def __init__(self, job: Job) -> None:
        summary = json.loads((job.folder / "eval" / "eval.json").read_text(encoding="utf-8"))
        self.metrics: dict[str, float] = {f"{p}/{name}": cell["value"] for p in PASSES for name, cell in summary[p].items()}
        self.metrics |= training_metrics(job.folder)
        self.gold: dict[Any, Any] = {}
        self.problems: PerProblem = {}
        rows = read_rows(job.folder / "eval" / "eval.jsonl")
        for name in PASSES:
            part = [row for row in rows if row["pass"] == name]
            self.gold |= {row["uid"]: row["gold"] for row in part}
            table = columns(part)
            curve = pass_curve(table["correct"])
            self.problems |= {f"{name}/pass@{k + 1}": curve[:, k] for k in range(curve.shape[1])}
            self.problems |= {f"{name}/{length}": table[length].mean(1) for length in LENGTHS}


def _difference(name: str, pairs: Sequence[tuple[Result, Result]]) -> Interval | None:
    """Of one metric, cell minus base, from (base, cell) of every seed that has both."""
    both = [(a, b) for a, b in pairs if name in a.metrics and name in b.metrics]
    if not both:
        return None
    out = over_seeds([b.metrics[name] - a.metrics[name] for a, b in both])
    same = all(side.gold == both[0][0].gold for pair in both for side in pair)
    if same and all(name in side.problems for pair in both for side in pair):
        out["over_problems"] = over_problems([b.problems[name] - a.problems[name] for a, b in both])
    return out


def make_rows(grid: Grid, todo: Sequence[Job]) -> list[dict[str, Any]]:
    """A row per cell with all its metrics; cells that have no finished run have none. Errors: UserError for damaged results."""
    results: dict[str, dict[int, Result]] = {name: {} for name in grid.cells}
    wanted: dict[str, int] = dict.fromkeys(grid.cells, 0)
    for job in todo:
        wanted[job.cell] += 1
        if finished(job):
            results[job.cell][job.seed] = Result(job)
    rows = []
    for cell, by_seed in results.items():
        row: dict[str, Any] = {"cell": cell, "runs": f"{len(by_seed)} of {wanted[cell]}", "settings": _settings(grid, cell, todo)}
        names = dict.fromkeys(name for result in by_seed.values() for name in result.metrics)
        row["metrics"] = {}
        for name in names:
            values = {seed: r.metrics[name] for seed, r in by_seed.items() if name in r.metrics}
            row["metrics"][name] = over_seeds(list(values.values())) | {"by_seed": [[seed, value] for seed, value in values.items()]}
        if cell != grid.base:
            pairs = [(results[grid.base][seed], result) for seed, result in by_seed.items() if seed in results[grid.base]]
            found = {name: _difference(name, pairs) for name in names}
            row["differences"] = {name: value for name, value in found.items() if value is not None}
        rows.append(row)
    return rows


def _settings(grid: Grid, cell: str, todo: Sequence[Job]) -> str:
    """What a cell changes: the base cell against the experiment, the others against the base cell."""
    if cell == grid.base:
        return ", ".join(f"{path}={value!r}" for path, value in grid.cells[cell].items())
    one = next(job for job in todo if job.cell == cell)
    base = next(job for job in todo if job.cell == grid.base and job.seed == one.seed)
    return ", ".join(f"{path}={new!r}" for path, (_, new) in diff(base.cfg, one.cfg).items() if path != "name")


def shown_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics for the eye: accuracy without noise, with it at the smallest and the largest k, and a few that tell why."""
    known = dict.fromkeys(name for row in rows for name in row["metrics"])
    largest = max((n for n in known if n.startswith("sampled/pass@")), key=lambda n: int(n.partition("@")[2]), default="")
    wanted = dict.fromkeys(("noise_free/pass@1", "sampled/pass@1", largest, *_SHOWN))
    return [name for name in wanted if name in known]


def _text(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "-"
    ends = "" if cell["low"] is None else f" [{cell['low']:.4f}, {cell['high']:.4f}]"
    return f"{cell['value']:.4f}{ends}"


def as_markdown(grid: Grid, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """The table of `shown_names`."""
    lines = [
        f"# Ablation {grid.name}: {len(rows)} cells, seeds {', '.join(map(str, seeds))}",
        "",
        f"Differences are cell minus `{grid.base}`, paired by seed. Intervals are 95 %: t over seeds, and a paired bootstrap over problems with the",
        f"seeds as they are. Metrics of training are means over the last {LAST:.0%} of the steps. All metrics are in ablation.csv and .json.",
        "",
    ]
    numbers = []
    for name in shown_names(rows):
        for row in rows:
            change = row.get("differences", {}).get(name)
            problems = _text(change.get("over_problems") if change else None)
            base = "base" if row["cell"] == grid.base else _text(change)
            numbers.append([name, row["cell"], row["runs"], _text(row["metrics"].get(name)), base, problems])
    settings = [[row["cell"], f"`{row['settings']}`" if row["settings"] else "-"] for row in rows]
    about = f"settings (of `{grid.base}` to the experiment, of the others to `{grid.base}`)"
    lines += [
        markdown.table(("metric", "cell", "runs", "value", "difference, over seeds", "difference, over problems"), numbers),
        "",
        markdown.table(("cell", about), settings),
    ]
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per cell and metric; an end that does not exist is empty."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    prefixes = ("", "difference_", "difference_over_problems_")
    write(["cell", "metric", "seeds", *(f"{p}{end}" for p in prefixes for end in ("value", "low", "high"))])
    for row in rows:
        for name, value in row["metrics"].items():
            change = row.get("differences", {}).get(name)
            cells = (value, change, change.get("over_problems") if change else None)
            numbers = [None if c is None else c[end] for c in cells for end in ("value", "low", "high")]
            write([row["cell"], name, len(value["by_seed"]), *("" if x is None else repr(float(x)) for x in numbers)])
    return out.getvalue()


def write_table(grid: Grid, todo: Sequence[Job], workdir: Place) -> str:
    """Writes ablation.md, .csv and .json into the workdir from all finished jobs. Returns the Markdown.

    The JSON's `rows` hold what the Markdown shows, for the report; `every_metric` holds all.
    """
    rows = make_rows(grid, todo)
    seeds = list(dict.fromkeys(job.seed for job in todo))
    names = shown_names(rows)

    def brief(cells: Mapping[str, Any]) -> dict[str, Any]:
        return {name: cells[name] for name in names if name in cells}

    kept = [row | {key: brief(row[key]) for key in ("metrics", "differences") if key in row} for row in rows]
    whole = {"grid": grid.name, "base": grid.base, "seeds": seeds, "rows": kept, "every_metric": rows}
    text = as_markdown(grid, rows, seeds)
    write_text(workdir / "ablation.json", json.dumps(whole, indent=1) + "\n")
    write_text(workdir / "ablation.csv", as_csv(rows))
    write_text(workdir / "ablation.md", text)
    return text
