"""`python -m lgrpo report`: everything about one or more runs on one page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import load_experiment, to_json
from lgrpo.report import carried, evaluations, figures, page, plots
from lgrpo.report.ablation import Ablation, read_ablation
from lgrpo.report.figures import Styles
from lgrpo.report.runs import ABLATION, Group, Run, config_diff, find_runs, flatten, group_runs
from lgrpo.runs import storage
from lgrpo.runs.storage import Place, write_text

KEY_METRICS = (
    "reward/mean",
    "eval/pass@1",
    "eval/pass@1_sampled",
    "rollout/chain_tokens",
    "rollout/latent_steps",
    "rollout/latent_share",
    "rollout/answer_tokens",
    "rollout/invalid_frac",
    "policy/ratio_max",
    "sft/loss",
    "sft/heldout_ce",
)
_MOST_VALUES = 500_000
_RESOLVED = {
    "model.vocab_size": 0,
    "data.think_end_id": -1,
    "data.eos_id": -1,
    "data.more_eos_ids": [],
}  # filled in from the tokenizer: no difference to an experiment's file


@dataclasses.dataclass
class Section:
    """Part of the page."""

    key: str
    title: str
    figures: list[Any] = dataclasses.field(default_factory=list)
    tables: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    note: str = ""
    wide: bool = False
    warnings: list[str] = dataclasses.field(default_factory=list)


def _overview(groups: Sequence[Group]) -> dict[str, Any]:
    """A row a group: what it is and how long it ran. What came out stands with what it was measured on."""
    rows = []
    for g in groups:
        steps = max((run.rows[-1]["step"] for run in g.runs if run.rows), default=None)
        timed = figures.phase_seconds(g)
        seeds = ", ".join(str(run.seed) for run in g.runs if run.seed is not None) or "–"
        found = ", ".join(dict.fromkeys(name for run in g.runs for name in run.evaluations)) or "none"
        rows.append([g.label, {"rl": "RL", "sft": "supervised"}.get(g.kind, "–"), seeds, steps, found, timed and timed["step"]])
    return {"columns": ["run", "training", "seeds", "steps logged", "evaluations", "seconds a step, median"], "rows": rows}


def _evaluation_sections(groups: Sequence[Group], styles: Styles) -> list[Section]:
    """One for each set of problems that was evaluated, and one for all benchmarks of suites."""
    sections = []
    for found in evaluations.comparisons(groups, suites=False):
        drawn = [
            figures.accuracy(found, styles),
            figures.length_against_accuracy(found, styles),
            figures.by_k(found, styles, "pass"),
            figures.by_k(found, styles, "maj"),
            figures.sweep(found, styles),
            figures.interventions(found, styles),
            carried.curve(found, styles),
        ]
        key = figures.anchor(f"evaluation-{found.key}")
        tables = [evaluations.table(found), *carried.arms_table(found)]
        sections.append(Section(key, f"Evaluation {found.title}", [f for f in drawn if f is not None], tables, wide=True))
        sections[-1].warnings = list(found.warnings)
    if suites := evaluations.comparisons(groups, suites=True):
        said = list(dict.fromkeys(warning for found in suites for warning in found.warnings))
        sections.append(Section("benchmarks", "Benchmarks", [], [evaluations.suite_table(suites)], wide=True, warnings=said))
    return sections


def _curve_sections(groups: Sequence[Group], styles: Styles) -> list[Section]:
    """For each kind of training: what one looks at first, diagnostics, the rest, and what never changed."""
    sections = []
    for kind, title in (("rl", "Reinforcement learning"), ("sft", "Supervised training")):
        by_area, flat = figures.curves(groups, styles, kind)
        everything = {f.title: f for figs in by_area.values() for f in figs}
        first = figures.by_compute(groups, styles, kind) + [everything.pop(name) for name in KEY_METRICS if name in everything]
        diagnostics = [f for area, figs in by_area.items() if area not in figures.AREAS for f in figs if f.title in everything]
        rest = [f for f in everything.values() if f not in diagnostics]
        note = figures.curves_note(groups, kind) + evaluations.curve_note(groups, kind)
        found = [Section(kind, title, first, note=note, warnings=evaluations.curve_warnings(groups, kind))]
        found += [Section(f"{kind}-diagnostics", "Diagnostics", diagnostics), Section(f"{kind}-more", f"{title}: further metrics", rest)]
        found = [s for s in found if s.figures]
        if flat and found:
            said = ", ".join(f"{name} = {value:.4g}" for name, value in flat.items())
            found[-1].note += f" Not drawn, because they never changed: {said}."
        sections += found
    return sections


def _ablation_section(tables: Sequence[Ablation]) -> list[Section]:
    sections = []
    for i, ablation in enumerate(tables):
        notes = list(dict.fromkeys(n for e in ablation.rows for n in e.notes))
        columns = ["cell", *notes, *ablation.metrics, *(f"{m}: difference" for m in ablation.differences)]
        rows = [
            [
                e.name,
                *(e.notes.get(n, "–") for n in notes),
                *(e.metrics.get(m) for m in ablation.metrics),
                *(e.differences.get(m) for m in ablation.differences),
            ]
            for e in ablation.rows
        ]
        key = "ablation" if i == 0 else f"ablation-{i + 1}"
        table = {"title": "All cells", "columns": columns, "rows": rows}
        sections.append(Section(key, "Ablation", figures.ablation_figures(ablation, key), [table], f"From {ablation.source}.", wide=True))
    return sections


def _diff_rows(base: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = config_diff(base, other)
    hidden = {path for path, empty in _RESOLVED.items() if empty in (base.get(path), other.get(path))}
    return [(path, page.setting(a), page.setting(b)) for path, a, b in found if path not in hidden]


def _configs(groups: Sequence[Group], base: tuple[str, dict[str, Any]] | None) -> tuple[list[dict[str, Any]], str]:
    """(tables of differences, what they are against). Without a base, the first group is it, and it is shown against lgrpo's defaults."""
    known = [g for g in groups if g.config]
    if not known:
        return [], "No run has a config.json."
    out = []
    if base is None:
        defaults = flatten(to_json(ExperimentConfig()))
        title = f"{known[0].label}, against lgrpo's defaults"
        out.append({"title": title, "left": "default", "right": known[0].label, "rows": _diff_rows(defaults, known[0].config)})
        base, known = (known[0].label, known[0].config), known[1:]
    for g in known:
        out.append({"title": f"{g.label}, against {base[0]}", "left": base[0], "right": g.label, "rows": _diff_rows(base[1], g.config)})
    return out, f"Differences to {base[0]}; seed and name are left out."


def _base(path: Place | None) -> tuple[str, dict[str, Any]] | None:
    """The config to compare with: that of an experiment's file or of a run."""
    if path is None:
        return None
    if path.suffix == ".py":
        return path.stem, flatten(to_json(load_experiment(path)))
    run = find_runs([path])[0]
    return run.name, run.config


def data_of(groups: Sequence[Group]) -> dict[str, Any]:
    """Everything that was read, for programs that read the page: all logged values of all seeds, and the evaluations.

    Beyond _MOST_VALUES the logged values are left out ("metrics" is None): a page of tens of megabytes opens on no phone.
    """
    fits = sum(len(run.rows) * len(run.rows[-1]) for g in groups for run in g.runs if run.rows) <= _MOST_VALUES

    def of(run: Run) -> dict[str, Any]:
        names = dict.fromkeys(name for row in run.rows for name in row if "/" in name)
        series = {name: [row.get(name) for row in run.rows] for name in names}
        return {
            "folder": run.place,
            "seed": run.seed,
            "steps": [row["step"] for row in run.rows],
            "metrics": series if fits else None,
            "evaluations": run.evaluations,
            "config": run.config,
        }

    return {"groups": [{"label": g.label, "runs": [of(run) for run in g.runs]} for g in groups]}


def _versions(groups: Sequence[Group]) -> str:
    found = dict.fromkeys(" ".join(f"{k} {v}" for k, v in run.versions.items()) for g in groups for run in g.runs if run.versions)
    return "; ".join(found) or "not recorded"


def write_report(paths: Sequence[Place], out: Place, *, base: Place | None = None, title: str = "") -> Place:
    """Writes the page to `out`, and each figure as SVG, PNG and CSV into the folder beside it. Returns `out`.

    Errors: UserError when there are no runs, or for a damaged file.
    """
    tables = [read_ablation(path / ABLATION) for path in paths if (path / ABLATION).is_file()]
    groups = group_runs(find_runs(paths))
    styles = figures.styles_of(groups)
    folder = out.parent / f"{out.stem}_figures"
    sections = _evaluation_sections(groups, styles)
    sections += _ablation_section(tables) + _curve_sections(groups, styles)
    timing = figures.timing(groups)
    sections.append(Section("timing", "Where the time goes", [timing] if timing else [], wide=True))
    sections = [s for s in sections if s.figures or s.tables or s.note]
    for section in sections:
        section.figures = [page.as_markup(plots.render(figure, folder)) for figure in section.figures]
    diffs, config_note = _configs(groups, _base(base))
    runs = sum(len(g.runs) for g in groups)
    html = page.render(
        "report.html",
        title=title or " · ".join(storage.resolved(path).name for path in paths),
        subtitle=f"{runs} {'run' if runs == 1 else 'runs'} in {len(groups)} {'group' if len(groups) == 1 else 'groups'} of equal settings.",
        sections=[*sections, Section("config", "Configuration")],
        styles=styles,
        overview=_overview(groups),
        overview_note="Noise-free: no latent noise, greedy answers. Sampled: with the noise and the sampler that a row names. "
        + figures.spread_note(groups),
        swatches=styles | {arm.label: styles[arm.group.label] for c in evaluations.comparisons(groups, suites=False) for arm in c.arms},
        diffs=diffs,
        config_note=config_note,
        configs=[
            {"label": g.label, "place": g.runs[0].place, "rows": [(p, page.setting(v)) for p, v in g.config.items()]}
            for g in groups
            if g.config
        ],
        versions=_versions(groups),
        data=data_of(groups),
        footer=f"Written by python -m lgrpo report. Each figure lies in {folder.name}/ as SVG, PNG and CSV.",
    )
    write_text(out, html)
    return out
