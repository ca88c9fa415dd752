"""Metrics over steps, joined over the seeds of a group."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from lgrpo.report.runs import Group, Run
from lgrpo.runs.metrics import METRICS


@dataclasses.dataclass(frozen=True)
class Band:
    """One metric of one group: mean, lowest and highest over the seeds that logged it at each step."""

    label: str
    steps: np.ndarray  # [S]; or what they had cost, see `over`
    mean: np.ndarray  # float [S]
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray  # int [S]

    @property
    def runs(self) -> int:
        """Seeds at the step where most of them are."""
        return int(self.seeds.max(initial=0))


def metric_names(groups: Iterable[Group]) -> list[str]:
    """Metrics that any run logged: declared ones in the order of METRICS, then the others in the order of their appearance."""
    seen = dict.fromkeys(name for g in groups for run in g.runs for row in run.rows for name in row if "/" in name)
    return [*(n for n in METRICS if n in seen), *(n for n in seen if n not in METRICS)]


def points(run: Run, name: str) -> dict[int, float]:
    """step -> value of a metric, as logged; steps where it is missing or was not finite are left out."""
    return {row["step"]: row[name] for row in run.rows if isinstance(row.get(name), int | float)}


def band(group: Group, name: str) -> Band | None:
    """None when no run of the group logged the metric."""
    columns = [found for run in group.runs if (found := points(run, name))]
    if not columns:
        return None
    steps = sorted({step for column in columns for step in column})
    values = [[column[step] for column in columns if step in column] for step in steps]
    mean = np.array([math.fsum(v) / len(v) for v in values])
    low, high = np.array([min(v) for v in values]), np.array([max(v) for v in values])
    return Band(group.label, np.array(steps), mean, low, high, np.array([len(v) for v in values]))


def over(group: Group, name: str, cost: str) -> Band | None:
    """A metric of a group over what its steps had cost (perf/flop_total, perf/seconds_total) in place of their numbers: means over the seeds that
    logged both at a step. None when no run did."""
    values, costs = band(group, name), band(group, cost)
    if values is None or costs is None:
        return None
    at = dict(zip(costs.steps.tolist(), costs.mean.tolist(), strict=True))
    keep = np.array([step in at for step in values.steps.tolist()])
    if not keep.any():
        return None
    x = np.array([at[step] for step in values.steps[keep].tolist()])
    return Band(group.label, x, values.mean[keep], values.low[keep], values.high[keep], values.seeds[keep])


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average; the window shrinks at the ends. [S] -> [S]."""
    if window <= 1:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(np.minimum(at, len(values) - 1 - at), window // 2)
    return (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)


def thin(count: int, most: int) -> list[int]:
    """At most `most` indices of 0 .. count-1, evenly spread, first and last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def constant(bands: Sequence[Band]) -> float | None:
    """The value of a metric that never moved by more than a hundred-thousandth of its size; None when it did."""
    values = np.concatenate([np.concatenate([b.low, b.high]) for b in bands])
    lowest, highest = values.min(), values.max()
    return float(lowest) if highest - lowest <= 1e-5 * abs(lowest) else None
