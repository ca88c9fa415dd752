"""The tables and the figure of docs/smollm2.md, from experiments/smollm2/results/ alone: nothing is run.

Run: python -m experiments.smollm2.tables                                # prints the tables
     python -m experiments.smollm2.tables --collect runs/smollm2/cpu     # takes over what a study wrote, before that
     python -m experiments.smollm2.tables --write                        # puts them into docs/smollm2.md and draws docs/images/smollm2.svg
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from experiments.demo.__main__ import exit_code
from experiments.smollm2.results import PASSES, RESULTS, Stage, collect, read, read_candidates, with_start
from experiments.smollm2.stages import BUDGETS, STAGES, TRANSFER, compared_as, sampler
from lgrpo.evaluation.compare import paired
from lgrpo.report.plots import Figure, Style, draw_lines, render
from lgrpo.runs import markdown as markdown_of

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "smollm2.md"
IMAGES = PAGE.parent / "images"
BLOCK = re.compile(r"(<!-- tables -->\n).*?(<!-- end of tables -->)", re.S)
NOT_RUN = "**Not run: there are no results yet, and no claim rests on this page.**\n"
Stages = dict[str, list[Stage]]
Pick = Callable[[dict[str, Any]], dict[str, float] | None]


def over_seeds(seeds: Sequence[Stage], where: str, pick: Pick) -> dict[str, float] | None:
    """One interval: of a single seed that over its problems; of several their mean, with the lowest and the highest. None without any."""
    found = [cell for s in seeds if where in s.evaluations and (cell := pick(s.evaluations[where])) is not None]
    if len(found) < 2:
        return found[0] if found else None
    values = [cell["value"] for cell in found]
    return {"value": fmean(values), "low": min(values), "high": max(values)}


def _pass(part: str, name: str) -> Pick:
    return lambda result: result.get(part, {}).get(name)


def _most(seeds: Sequence[Stage]) -> list[int]:
    """The largest k of pass@k in each evaluation, if it is more than one."""
    ks = [[int(name[5:]) for name in s.evaluations["eval"].get("sampled", {}) if name.startswith("pass@")] for s in seeds]
    return [max(found) for found in ks if max(found, default=1) > 1]


def _part(part: str, name: str, what: str) -> Pick:
    return lambda result: result.get(part, {}).get(name, {}).get(what)


def _shown(cell: dict[str, float] | None, digits: int = 3, *, signed: bool = False) -> str:
    if cell is None:
        return "–"
    value, low, high = (f"{cell[part]:{'+' if signed else ''}.{digits}f}" for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; "" without rows."""
    if not rows:
        return ""
    return f"{title}\n\n{markdown_of.table(columns, rows)}\n"


def _mean_cost(stages: Stages, name: str, what: str, form: str) -> str:
    found = [with_start(stages, name, s.seed, what) for s in stages[name]]
    known = [cost for cost in found if cost is not None]
    return format(fmean(known), form) if len(known) == len(found) else "–"


def _main_table(stages: Stages) -> str:
    most = [f"pass@{k}" for k in sorted({k for seeds in stages.values() for k in _most(seeds)})]
    rows = [
        [
            name,
            ", ".join(str(s.seed) for s in seeds),
            *(_shown(over_seeds(seeds, "eval", _pass(part, "pass@1"))) for part in PASSES),
            *(_shown(over_seeds(seeds, "eval", _pass("sampled", k))) for k in most),
            _shown(over_seeds(seeds, "eval", _pass("noise_free", "chain_tokens")), 2),
            _mean_cost(stages, name, "flop", ".3g"),
            _mean_cost(stages, name, "seconds", ".0f"),
        ]
        for name, seeds in stages.items()
    ]
    columns = ("stage", "seeds", "pass@1 noise-free", "pass@1 sampled", *most, "chain steps", "FLOP with start", "seconds with start")
    return _table("Accuracy on `test`, and what it had cost:", columns, rows)


def _start_at(name: str, how: str) -> str:
    """Folder of the evaluation of an RL stage's start that samples as the stage does."""
    return "eval" if sampler(STAGES[name][1], how) == sampler(name, how) else compared_as(name)


def difference(stages: Stages, a: str, b: str, how: str, only: Sequence[int] | None = None) -> dict[str, float] | None:
    """Accuracy of b less that of a over the problems, and the seeds that both have, which are averaged first. None where there are none.
    only: these seeds, all of them or none.

    Where a is the start of b, it samples as b does, or it is not compared.
    """
    where = _start_at(b, how) if a == STAGES[b][1] else "eval"
    first, second = (
        {s.seed: s.outcomes[at][how] for s in stages.get(name, []) if how in s.outcomes.get(at, {})}
        for name, at in ((a, where), (b, "eval"))
    )
    seeds = sorted(first.keys() & second.keys() if only is None else only)
    if not seeds or not set(seeds) <= first.keys() & second.keys() or any(first[seed].keys() != second[seed].keys() for seed in seeds):
        return None
    right = [np.mean([[side[seed][uid] for uid in sorted(first[seeds[0]], key=int)] for seed in seeds], 0) for side in (first, second)]
    return paired(*right)["difference"]


def _paired_table(stages: Stages) -> str:
    """A row for each seed, and one for several together; no cell leaves one of its seeds out."""
    rows = []
    for name, (kind, start, _) in STAGES.items():
        if kind != "train" or name not in stages:
            continue
        both = sorted({s.seed for s in stages[name]} & {s.seed for s in stages.get(start, [])})
        for seeds in [[seed] for seed in both] + [both] * (len(both) > 1):
            cells = [difference(stages, start, name, how, seeds) for how in PASSES]
            against = [difference(stages, "explicit_grpo", name, how, seeds) if name != "explicit_grpo" else None for how in PASSES]
            if any(cells) or any(against):
                rows.append([name, start, ", ".join(map(str, seeds)), *(_shown(cell, signed=True) for cell in (*cells, *against))])
    of = ("less its start", "less `explicit_grpo`")
    columns = ("RL stage", "start", "seeds", *(f"{how}, {what}" for what in of for how in ("noise-free", "sampled")))
    return _table(
        "What RL changed, paired over the problems of `test`, 95 % intervals over these; of several seeds the mean. A start samples as the stage does; "
        "where that was not evaluated there is no difference:",
        columns,
        rows,
    )


def _arms_table(stages: Stages) -> str:
    arms = ("free", "forced", "floor", "hardened")
    rows = [
        [name, *(_shown(over_seeds(seeds, "eval", _part("arms", arm, "accuracy"))) for arm in arms)]
        for name, seeds in stages.items()
        if any(s.evaluations["eval"].get("arms") for s in seeds)
    ]
    return _table("What the thinking carries, noise-free on `test` ([evaluation](evaluation.md)):", ("stage", *arms), rows)


def _curve_table(stages: Stages) -> str:
    rows = [
        [name, str(kept), _shown(over_seeds(seeds, "eval", _part("curve", str(kept), "accuracy")))]
        for name, seeds in stages.items()
        for kept in sorted({int(n) for s in seeds for n in s.evaluations["eval"].get("curve", {})})
    ]
    return _table("Accuracy when thinking ends after so many steps:", ("stage", "steps kept", "pass@1"), rows)


def _others_table(stages: Stages) -> str:
    wheres = ("held_out", *(f"transfer/{name}" for name in TRANSFER))
    rows = [
        [name, *(_shown(over_seeds(seeds, where, _pass("noise_free", "pass@1"))) for where in wheres)]
        for name, seeds in stages.items()
        if any(where in s.evaluations for s in seeds for where in wheres)
    ]
    return _table("Other problems, noise-free: templates held out of training, and problems that people wrote:", ("stage", *wheres), rows)


def _choice_table(candidates: Stages) -> str:
    rows = [
        [
            name,
            *(_shown(over_seeds(seeds, "eval", _pass(part, "pass@1"))) for part in PASSES),
            _shown(over_seeds(seeds, "eval", _pass("noise_free", "chain_tokens")), 2),
            format(seeds[0].cost["flop"], ".3g"),
        ]
        for name, seeds in candidates.items()
    ]
    columns = ("Latent-SFT", "pass@1 noise-free", "pass@1 sampled", "chain steps", "FLOP")
    return _table("Candidates for Latent-SFT, on `valid`:", columns, rows)


def markdown(results: pathlib.Path = RESULTS) -> str:
    """The tables of every budget that has results; NOT_RUN where none has."""
    parts = []
    for budget in BUDGETS:
        stages = read(results / budget)
        if stages:
            missing = [name for name in BUDGETS[budget].stages or STAGES if name not in stages]
            head = f"### Budget `{budget}`\n"
            note = f"Not run, or not finished: {', '.join(missing)}.\n" if missing else ""
            tables = [table(stages) for table in (_main_table, _paired_table, _arms_table, _curve_table, _others_table)]
            tables.append(_choice_table(read_candidates(results / budget)))
            parts.append("\n".join(part for part in (head, *tables, note) if part))
    image = [f"![Accuracy over FLOP: {figure_said(drawn)}](images/smollm2.svg)\n"] if (drawn := _main_figure(results)) else []
    note = "Of differences intervals are over problems. Elsewhere: 95 % over problems for one seed; mean, lowest and highest seed for several.\n"
    return "\n".join([*image, *parts, note]) if parts else NOT_RUN


def figure(stages: Stages) -> Figure | None:
    """Accuracy before and after each RL stage, sampled in one way, over the FLOP of everything up to there. None where no RL stage and its start are
    known."""
    lines, rows, legend = [], [], {}
    for name, (kind, start, _) in STAGES.items():
        if kind != "train" or name not in stages or start not in stages:
            continue
        style = Style(len(lines))
        where = _start_at(name, "noise_free")
        points, seeds = [], {s.seed for s in stages[name]} & {s.seed for s in stages[start] if where in s.evaluations}
        for at, place in ((start, where), (name, "eval")) if seeds else ():
            spent = [with_start(stages, at, seed, "flop") for seed in sorted(seeds)]
            cell = over_seeds([s for s in stages[at] if s.seed in seeds], place, _pass("noise_free", "pass@1"))
            if cell is not None and None not in spent:
                points.append((fmean(spent), cell))
                rows.append([name, at, fmean(spent), cell])
        if len(points) == 2:
            lines.append(([x for x, _ in points], [cell for _, cell in points], style))
            legend[name] = style
    if not lines:
        return None
    return Figure(
        key="smollm2",
        title="SmolLM2-135M: accuracy at equal compute",
        caption="",
        alt="",
        columns=["run", "stage", "FLOP", "pass@1"],
        rows=rows,
        draw=draw_lines(lines, xlabel="FLOP of sampling and updates, with all that a stage started from", integer=False),
        legend=legend,
        width=6.4,
        height=3.2,
    )


def figure_said(drawn: Figure) -> str:
    """What the figure shows, for those who do not see it."""
    return "; ".join(f"{run}, {at}: {cell['value']:.3f} at {flop:.3g}" for run, at, flop, cell in drawn.rows)


def _main_figure(results: pathlib.Path) -> Figure | None:
    """That of the largest budget that has one."""
    return next((found for budget in reversed(BUDGETS) if (found := figure(read(results / budget))) is not None), None)


def write(results: pathlib.Path = RESULTS, page: pathlib.Path = PAGE, images: pathlib.Path = IMAGES) -> None:
    """Tables into the page, and the figure beside it."""
    text = markdown(results)
    page.write_text(BLOCK.sub(lambda found: f"{found[1]}{text}{found[2]}", page.read_text(encoding="utf-8")), encoding="utf-8")
    if (drawn := _main_figure(results)) is not None:
        render(drawn, images)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.smollm2.tables", description=__doc__)
    parser.add_argument("--collect", type=pathlib.Path, metavar="DIR", help="first take over what the study in DIR wrote")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/smollm2.md and draw the figure")
    options = parser.parse_args()

    def work() -> int:
        if options.collect:
            print(f"collected: {', '.join(collect(options.collect))}", file=sys.stderr)
        if options.write:
            write()
        print(markdown())
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
