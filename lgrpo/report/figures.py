"""Which figures a report has, and the numbers in each. The table below a figure holds what the figure shows, unrounded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from statistics import median
from typing import Any

from lgrpo.report import plots
from lgrpo.report.ablation import Ablation
from lgrpo.report.evaluations import Comparison
from lgrpo.report.histograms import families, histogram
from lgrpo.report.plots import Figure, Style
from lgrpo.report.runs import Group
from lgrpo.report.series import Band, band, constant, metric_names, over, thin
from lgrpo.runs.metrics import METRICS, Metric

AREAS = ("reward", "eval", "rollout", "policy", "grad", "sft", "dynamic", "grade", "optim", "time", "perf")
"""Of lgrpo.runs.metrics, in the order of a report; any other area is a diagnostic."""
_EVAL = {
    "eval/pass@1": Metric("share", "mean over problems", "accuracy, noise-free latents and greedy answers"),
    "eval/pass@1_sampled": Metric("share", "mean over problems and samples", "accuracy under the noise of training"),
}
PHASES = ("rollout", "train", "grade", "data", "rest")
_ROWS = 13  # of the table below a curve
_WIDE = 5.6  # inches; two beside each other instead of three
Styles = dict[str, Style]


def anchor(text: str) -> str:
    """A name for files and ids."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "figure"


def styles_of(groups: Sequence[Group]) -> Styles:
    """One style a group, in their order."""
    return {group.label: Style(i) for i, group in enumerate(groups)}


def number(x: float | None) -> str:
    """For sentences and cells: four significant digits."""
    return "–" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x)


def spread_note(groups: Sequence[Group]) -> str:
    """What the intervals of evaluations are."""
    several = any(len(g.runs) > 1 for g in groups)
    single = any(len(g.runs) == 1 for g in groups)
    parts = ["95 % over problems for a single run"] * single + ["lowest to highest seed where there are several"] * several
    return "Intervals: " + "; ".join(parts) + "."


# -- curves -------------------------------------------------------------------------------------------------------------------------------


def _said(b: Band) -> str:
    seeds = f" ({b.runs} seeds)" if b.runs > 1 else ""
    if len(b.steps) == 1:
        return f"{b.label}{seeds}: {number(b.mean[0].item())} at step {b.steps[0]}"
    first, last = number(b.mean[0].item()), number(b.mean[-1].item())
    extremes = f"between {number(b.mean.min().item())} and {number(b.mean.max().item())}"
    return f"{b.label}{seeds}: {first} at step {b.steps[0]}, {last} at step {b.steps[-1]}, {extremes}"


def _curve_rows(bands: Sequence[Band], most: int) -> list[list[Any]]:
    rows = []
    for b in bands:
        for i in thin(len(b.steps), most):
            value: Any = b.mean[i].item()
            if b.seeds[i] > 1:
                value = {"value": value, "low": b.low[i].item(), "high": b.high[i].item()}
            rows.append([b.label, b.steps[i].item(), value, int(b.seeds[i])])
    return rows


def _curve(name: str, bands: list[Band], styles: Styles, kind: str) -> Figure:
    metric = METRICS.get(name) or _EVAL.get(name) or METRICS.get(name.replace("eval/", "rollout/"))
    caption = f"{metric.meaning}; {metric.unit}, {metric.reducer}." if metric else ""
    values = [x for b in bands for x in (b.low.min(), b.high.max())]
    near_zero = min(values) >= 0 and min(values) < 0.5 * max(values)
    xlabel = "RL step" if kind == "rl" else "update"
    pairs = [(b, styles[b.label]) for b in bands]
    shown = _curve_rows(bands, _ROWS)
    total = sum(len(b.steps) for b in bands)
    return Figure(
        key=anchor(f"{kind}-{name}"),
        title=name,
        caption=caption[:1].upper() + caption[1:],
        alt=f"{name} by {xlabel}. " + "; ".join(_said(b) for b in bands) + ".",
        columns=["run", "step", name, "seeds"],
        rows=shown,
        draw=plots.draw_bands(pairs, xlabel=xlabel, share=near_zero),
        legend={b.label: styles[b.label] for b in bands},
        note=f"{len(shown)} of {total} logged points; all of them are in the CSV." if len(shown) < total else "",
        full=_curve_rows(bands, 10**9),
    )


def curves(groups: Sequence[Group], styles: Styles, kind: str) -> tuple[dict[str, list[Figure]], dict[str, float]]:
    """(figures by area, metrics that never changed with their value) of the runs of one kind."""
    some = [g for g in groups if g.kind == kind]
    found: dict[str, list[Figure]] = {}
    flat: dict[str, float] = {}
    names = metric_names(some)
    for family, bins in families(names).items():
        key = anchor(f"{kind}-{family}-histogram")
        found.setdefault(family.split("/")[0], []).append(histogram(some, family, bins, styles, key))
        names = [name for name in names if name not in bins]
    for name in names:
        bands = [b for g in some if (b := band(g, name)) is not None]
        if not bands:
            continue
        if (value := constant(bands)) is not None and sum(len(b.steps) for b in bands) > 1:
            flat[name] = value
        else:
            found.setdefault(name.split("/")[0], []).append(_curve(name, bands, styles, kind))
    order = [*(a for a in AREAS if a in found), *(a for a in found if a not in AREAS)]
    return {area: found[area] for area in order}, flat


_COSTS = {"perf/flop_total": ("FLOP of sampling and updates", "by FLOP"), "perf/seconds_total": ("seconds of steps", "by seconds")}
_ACCURACY = ("eval/pass@1_sampled", "eval/pass@1", "reward/correct", "reward/mean")
_MEASURED = "perf/flop_total: matrix products of this run alone, not of what it started from. Seconds: steps without compilation, evaluation and saving."


def by_compute(groups: Sequence[Group], styles: Styles, kind: str) -> list[Figure]:
    """Accuracy over what it had cost, in FLOP and in seconds: what runs of different lengths of completion are compared by. The first of
    _ACCURACY that every group logged; [] when there is none, or no run logged its cost."""
    some = [g for g in groups if g.kind == kind]
    out = []
    for cost, (xlabel, title) in _COSTS.items():
        found = ([over(g, name, cost) for g in some] for name in _ACCURACY)
        name, bands = next(((n, b) for n, b in zip(_ACCURACY, found, strict=True) if b and None not in b), ("", []))
        if not bands or max(len(b.steps) for b in bands) < 2:
            continue
        figure = _curve(name, bands, styles, kind)
        alt = f"{name} over {xlabel}. " + "; ".join(
            f"{b.label}: {number(b.mean[0].item())} at {number(float(b.steps[0]))}, {number(b.mean[-1].item())} at {number(float(b.steps[-1]))}"
            for b in bands
        )
        out.append(
            dataclasses.replace(
                figure,
                key=anchor(f"{kind}-{name}-{cost}"),
                title=f"{name} {title}",
                caption=f"{figure.caption} {_MEASURED}",
                alt=f"{alt}.",
                columns=["run", xlabel, name, "seeds"],
                draw=plots.draw_bands([(b, styles[b.label]) for b in bands], xlabel=xlabel, share=False),
            )
        )
    return out


def curves_note(groups: Sequence[Group], kind: str) -> str:
    """How the curves of one kind are drawn."""
    some = [g for g in groups if g.kind == kind]
    bands = [b for g in some for name in metric_names([g])[:1] if (b := band(g, name)) is not None]
    smoothed = any(plots.smoothing(b) > 1 for b in bands)
    parts = ["Lines are means over seeds, bands the lowest to the highest seed."] * any(b.runs > 1 for b in bands)
    parts += ["Long runs are drawn as a moving average over a twentieth of their points; pale lines are single runs as logged."] * smoothed
    return " ".join([*parts, "The tables below the figures hold what was logged."])


# -- evaluations: of one comparison each, so that all points of a figure are of the same problems -----------------------------------------


def _note(found: Comparison) -> str:
    return spread_note([dataclasses.replace(arm.group, runs=arm.runs) for arm in found.arms])


def _styled(found: Comparison, styles: Styles) -> Styles:
    return {arm.label: styles[arm.group.label] for arm in found.arms}


def _key(found: Comparison, name: str) -> str:
    return name if found.key == "eval" else anchor(f"{found.key}-{name}")


def by_k(found: Comparison, styles: Styles, family: str) -> Figure | None:
    """pass@k or maj@k over k under the noise of training. family: pass or maj."""
    own = _styled(found, styles)
    lines, rows = [], []
    for arm in found.arms:
        ks = sorted(int(name.split("@")[1]) for name in arm.names("sampled") if re.fullmatch(rf"{family}@\d+", name))
        cells = [arm.measured("sampled", f"{family}@{k}") for k in ks]
        if len(ks) > 1:
            lines.append((ks, cells, own[arm.label]))
            rows += [[arm.label, k, cell] for k, cell in zip(ks, cells, strict=True)]
    if not lines:
        return None
    said = "; ".join(f"{label} k={k}: {number(cell['value'])}" for label, k, cell in rows)
    what = "at least one of k samples is correct, unbiased" if family == "pass" else "a majority vote of k samples is correct"
    return Figure(
        key=_key(found, f"{family}-at-k"),
        title=f"{family}@k",
        caption=f"Probability that {what}, sampled. {found.title}. {_note(found)}",
        alt=f"{family}@k by k. {said}.",
        columns=["run", "k", f"{family}@k"],
        rows=rows,
        width=_WIDE,
        draw=plots.draw_lines(lines, xlabel="samples k", integer=True),
        legend={label: own[label] for label in dict.fromkeys(row[0] for row in rows)},
    )


def accuracy(found: Comparison, styles: Styles) -> Figure | None:
    """Noise-free and sampled pass@1 of every row."""
    rows, dots = [], []
    for arm in found.arms:
        clean, noisy = (arm.measured(part, "pass@1") for part in ("noise_free", "sampled"))
        if clean or noisy:
            rows.append([arm.label, clean, noisy])
            style = styles[arm.group.label]
            dots.append((arm.label, [(c, style, m) for c, m in ((clean, "o"), (noisy, "ring")) if c]))
    if not rows:
        return None
    said = "; ".join(f"{r[0]}: {number(r[1] and r[1]['value'])} noise-free, {number(r[2] and r[2]['value'])} sampled" for r in rows)
    return Figure(
        key=_key(found, "accuracy"),
        title="Accuracy (pass@1)",
        caption=f"Filled: noise-free latents, greedy answers. Ring: sampled. {found.title}. {_note(found)}",
        alt=f"pass@1 of each run. {said}.",
        columns=["run", "noise-free", "sampled"],
        rows=rows,
        width=_WIDE,
        draw=plots.draw_dots(dots, xlabel="pass@1"),
        height=max(1.6, 0.75 + 0.42 * len(rows)),
    )


def length_against_accuracy(found: Comparison, styles: Styles) -> Figure | None:
    """A point a run: chain length and accuracy of the noise-free pass. Explicit runs are marked in the table."""
    own = _styled(found, styles)
    rows, points = [], []
    for arm in found.arms:
        for run, result in zip(arm.runs, arm.results, strict=True):
            x, y = (result.get("noise_free", {}).get(name) for name in ("chain_tokens", "pass@1"))
            if x and y:
                mode = arm.about.get("thinks_in") or run.config.get("rollout.mode", "–")
                rows.append([arm.label, mode, run.seed, x, y])
                points.append((x, y, own[arm.label]))
    if not rows:
        return None
    said = "; ".join(f"{label} ({mode}): {number(x['value'])} steps, {number(y['value'])}" for label, mode, _, x, y in rows)
    return Figure(
        key=_key(found, "length-accuracy"),
        title="Chain length against accuracy",
        caption="One point a run, noise-free pass: steps before the end of thinking (latents, or tokens of an explicit chain) and pass@1, "
        f"95 % intervals over problems. {found.title}.",
        alt=f"pass@1 by chain length. {said}.",
        columns=["run", "thinks in", "seed", "chain steps", "pass@1"],
        rows=rows,
        width=_WIDE,
        draw=plots.draw_scatter(points, xlabel="steps before the end of thinking", ylabel="pass@1"),
        legend={label: own[label] for label in dict.fromkeys(row[0] for row in rows)},
    )


def sweep(found: Comparison, styles: Styles) -> Figure | None:
    """pass@1 by scale of the latent noise, from evaluations with a sweep."""
    own = _styled(found, styles)
    lines, rows = [], []
    for arm in found.arms:
        scales = sorted(arm.names("sweep"), key=float)
        cells = [arm.read(lambda result, s=s: result["sweep"].get(s, {}).get("pass@1")) for s in scales]
        if scales:
            lines.append(([float(s) for s in scales], cells, own[arm.label]))
            rows += [[arm.label, float(s), cell] for s, cell in zip(scales, cells, strict=True)]
    if not lines:
        return None
    return Figure(
        key=_key(found, "noise-sweep"),
        title="Accuracy by noise scale",
        caption=f"pass@1 by scale of the latent noise. {found.title}. {_note(found)}",
        alt="pass@1 by noise scale. " + "; ".join(f"{label} at {s:g}: {number(c['value'])}" for label, s, c in rows) + ".",
        columns=["run", "noise scale", "pass@1"],
        rows=rows,
        width=_WIDE,
        draw=plots.draw_lines(lines, xlabel="scale of the latent noise", integer=False),
        legend={label: own[label] for label in dict.fromkeys(row[0] for row in rows)},
    )


def interventions(found: Comparison, styles: Styles) -> Figure | None:
    """Accuracy when latent steps feed something else."""
    rows, dots = [], []
    for arm in found.arms:
        for kind in arm.names("counterfactual"):
            cell = arm.read(lambda result, k=kind: result["counterfactual"].get(k, {}).get("accuracy"))
            if cell:
                rows.append([arm.label, kind, cell])
                dots.append((f"{kind}, {arm.label}" if len(found.arms) > 1 else kind, [(cell, styles[arm.group.label], "o")]))
    if not rows:
        return None
    return Figure(
        key=_key(found, "interventions"),
        title="Are the latents used?",
        caption=f"Noise-free accuracy when every latent is replaced by something else. {found.title}. {_note(found)}",
        alt="pass@1 by intervention. " + "; ".join(f"{label}, {kind}: {number(c['value'])}" for label, kind, c in rows) + ".",
        columns=["run", "latents", "pass@1"],
        rows=rows,
        width=_WIDE,
        draw=plots.draw_dots(dots, xlabel="pass@1"),
        height=0.75 + 0.27 * len(rows),
    )


# -- ablation, time -----------------------------------------------------------------------------------------------------------------------


def ablation_figures(ablation: Ablation, prefix: str = "ablation") -> list[Figure]:
    """A forest plot for each metric with paired differences, or for each metric with intervals when there are none."""
    out = []
    paired = bool(ablation.differences)
    for name in ablation.differences or [
        m for m in ablation.metrics if any(e.metrics.get(m, {}).get("low") is not None for e in ablation.rows)
    ]:
        cells = [(e.name, (e.differences if paired else e.metrics).get(name)) for e in ablation.rows]
        rows = [[label, cell] for label, cell in cells if cell and cell["value"] is not None]
        if not rows:
            continue
        what = f"{name}: paired difference to the base" if paired else name
        out.append(
            Figure(
                key=anchor(f"{prefix}-{name}"),
                title=what,
                caption="With 95 % intervals." if any(c["low"] is not None for _, c in rows) else "",
                alt=f"{what}. "
                + "; ".join(f"{label}: {number(c['value'])} [{number(c['low'])}, {number(c['high'])}]" for label, c in rows)
                + ".",
                columns=["cell", name],
                rows=rows,
                width=_WIDE,
                draw=plots.draw_dots([(label, [(c, Style(0), "o")]) for label, c in rows], xlabel=what, zero=paired),
                height=0.75 + 0.27 * len(rows),
            )
        )
    return out


def phase_seconds(group: Group) -> dict[str, float] | None:
    """Median seconds a step by phase, over all logged steps of all seeds but each run's first (which compiles); `compile`: seconds of a whole run,
    the median over seeds. None when nothing was timed."""
    lines = [row for run in group.runs for row in (run.rows[1:] or run.rows) if isinstance(row.get("time/step_s"), int | float)]
    if not lines:
        return None
    known = {p: median(row.get(f"time/{p}_s") or 0.0 for row in lines) for p in PHASES[:-1]}
    compiling = median(sum(row.get("time/compile_s") or 0.0 for row in run.rows) for run in group.runs)
    total = median(row["time/step_s"] for row in lines)
    return known | {"rest": max(0.0, total - sum(known.values())), "step": total, "compile": compiling}


def timing(groups: Sequence[Group]) -> Figure | None:
    """Where a step's time goes."""
    found = [(g.label, seconds) for g in groups if (seconds := phase_seconds(g)) is not None]
    if not found:
        return None
    rows = [[label, *(seconds[p] for p in PHASES), seconds["step"], seconds["compile"]] for label, seconds in found]
    bars = [(label, [seconds[p] for p in PHASES]) for label, seconds in found]
    return Figure(
        key="timing",
        title="Seconds a step by phase",
        caption="Medians over logged steps, the first of each run left out. Grade: grading. Data: making and sending supervised batches. Rest: the step "
        "less the other phases. Compile: lowering and compiling, in seconds of the whole run, in no phase's median.",
        alt="Median seconds a step. "
        + "; ".join(
            f"{label}: {number(s['step'])} in all, {number(s['rollout'])} sampling, {number(s['train'])} updating" for label, s in found
        )
        + ".",
        columns=["run", *(f"{p} s" for p in PHASES), "step s", "compile s, whole run"],
        rows=rows,
        width=_WIDE,
        draw=plots.draw_stacks(bars, PHASES, xlabel="seconds"),
        height=max(1.7, 1.0 + 0.36 * len(rows)),
    )
