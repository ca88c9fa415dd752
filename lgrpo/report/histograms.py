"""Metrics that are the bins of one histogram: <area>/<name>_hist_<bin> or <area>/<name>_bin_<bin>, drawn together instead of one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from lgrpo.report import plots
from lgrpo.report.plots import Figure, Style
from lgrpo.report.runs import Group
from lgrpo.report.series import Band, band

_BIN = re.compile(r"(?P<family>.+?)_(?:hist|bin)_?(?P<label>.+)")


def families(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """family -> {metric: label of its bin}, in the order of the names. A family of one is none."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _BIN.fullmatch(name):
            found.setdefault(match["family"], {})[name] = match["label"]
    return {family: bins for family, bins in found.items() if len(bins) > 1}


def _ends(b: Band) -> tuple[float, float]:
    """Means over the first and the last tenth of the logged steps."""
    span = max(1, len(b.steps) // 10)
    return fmean(b.mean[:span].tolist()), fmean(b.mean[-span:].tolist())


def histogram(groups: Sequence[Group], family: str, bins: dict[str, str], styles: dict[str, Style], key: str) -> Figure:
    """The bins at the beginning and at the end of training, a line a group."""
    rows: list[list[Any]] = []
    lines: list[tuple[list[str], list[float], list[float], Style]] = []
    for g in groups:
        found = {label: _ends(b) for name, label in bins.items() if (b := band(g, name)) is not None}
        if found:
            rows += [[g.label, label, first, last] for label, (first, last) in found.items()]
            lines.append((list(found), [x for x, _ in found.values()], [x for _, x in found.values()], styles[g.label]))
    said = "; ".join(f"{row[0]}, {row[1]}: {row[2]:.4g} then {row[3]:.4g}" for row in rows)
    return Figure(
        key=key,
        title=family,
        caption="Share by bin: mean over the last tenth of the logged steps; pale: over the first tenth.",
        alt=f"{family} by bin, first and last tenth of training. {said}.",
        columns=["run", "bin", "first tenth", "last tenth"],
        rows=rows,
        draw=plots.draw_bins(list(bins.values()), lines),
        legend={label: styles[label] for label in dict.fromkeys(row[0] for row in rows)},
    )
