"""`python -m lgrpo trace`: traces for the terminal and as a page."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from lgrpo.config import ExperimentConfig
from lgrpo.config.validate import require_valid
from lgrpo.data.pipeline import prompt_batches
from lgrpo.data.prompts import TextTokenizer, load_tokenizer, resolve
from lgrpo.errors import UserError
from lgrpo.keys import Stream, key_for
from lgrpo.models.spec import abstract_params, param_shardings
from lgrpo.report import page
from lgrpo.report.text import visible, visible_lines
from lgrpo.report.trace import Sample, Step, Trace, trace
from lgrpo.runs import multihost
from lgrpo.runs.checkpoint import check_source, load_params, saved_step
from lgrpo.runs.precision import settle_for_run
from lgrpo.runs.storage import Place, write_text
from lgrpo.sharding import ROLLOUT_RULES, make_mesh
from lgrpo.types import PromptBatch

_SIDE_BY_SIDE = 170  # columns of a terminal that hold two checkpoints beside each other
_PIPE = 120  # columns where there is no terminal


@dataclasses.dataclass(frozen=True)
class Side:
    """One checkpoint's traces, one for each problem."""

    name: str
    traces: list[Trace]


# -- terminal -----------------------------------------------------------------------------------------------------------------------------


def _verdict(sample: Sample) -> Text:
    mark = ("✓ correct", "bold green") if sample.correct else ("✗ wrong", "bold red")
    said = Text.assemble(f"sample {sample.index}  ", mark, f"  advantage {sample.advantage:+.3f}  {sample.finish}")
    if sample.winner:
        said.append("  ★ winner of the group", "bold yellow")
    if not sample.valid:
        said.append("  invalid", "magenta")
    return said


# Numbers of a latent step with their widths, and which of them go first where there is no room. Step, token and weight always stay.
_NUMBERS = {"p": 6, "rank": 6, "noise": 6, "score-logp": 10, "p(exit)": 7, "advantage": 9}
_FIRST_TO_GO = ("score-logp", "noise", "p", "rank", "p(exit)", "advantage")
_STEP, _TOKEN, _WEIGHT, _BAR = 4, 8, 5, 9


def _fitting(width: int, without: Sequence[str]) -> tuple[list[str], bool]:
    """(numbers that fit into `width` beside step, token and weight, whether the bar of the weight fits too)."""
    kept = [name for name in _NUMBERS if name not in without]
    room = width - (_STEP + 1 + _TOKEN + 1 + _WEIGHT)
    for name in _FIRST_TO_GO:
        if sum(_NUMBERS[n] + 1 for n in kept) > room and name in kept:
            kept.remove(name)
    return kept, room - sum(_NUMBERS[n] + 1 for n in kept) >= _BAR


def _mixtures(sample: Sample, width: int, without: Sequence[str] = ()) -> Table:
    """A row for each token of each latent step, in `width` columns: long tokens fold, numbers that do not fit are left out whole."""
    kept, bar = _fitting(width, without)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("token", overflow="fold")
    table.add_column("weight", no_wrap=True)
    for name in kept:
        table.add_column(name, justify="right", no_wrap=True)
    for step in sample.latents:
        for k, c in enumerate(step.components):
            weight = f"{'█' * round(8 * c.weight):<8} {c.weight:.3f}" if bar else f"{c.weight:.3f}"
            noise = "-" if c.draw is None else f"{c.draw:+.2f}{'|' if c.clamped else ' '}"
            numbers = {"p": f"{np.exp(c.logp):.4f}", "rank": str(c.rank), "noise": noise}
            numbers["score-logp"] = "-" if c.margin is None else f"{c.margin:+.3f}"
            numbers |= {"p(exit)": f"{step.exit_prob:.4f}", "advantage": f"{step.advantage:+.3f}"} if k == 0 else {}
            row = [str(step.index) if k == 0 else "", visible(c.token), weight, *(numbers.get(name, "") for name in kept)]
            style = "bold" if k == 0 else "dim" if c.weight < 0.02 else ""
            table.add_row(*(Text(x) for x in row), style=style, end_section=k == len(step.components) - 1)
    return table


def _chain(sample: Sample) -> list[Text]:
    """An explicit chain as one text with its line breaks, and how sure the model was of it; nothing for latents."""
    thoughts = [step for step in sample.steps if step.kind == "thought"]
    if not thoughts:
        return []
    probs = [float(np.exp(step.components[0].logp)) for step in thoughts]
    least = thoughts[int(np.argmin(probs))].components[0].token
    said = f"{len(thoughts)} tokens, mean p {np.mean(probs):.3f}, least {min(probs):.3f} at {visible(least)}"
    return [Text.assemble("chain: ", (visible_lines(sample.chain), "bold")), Text(said, "dim")]


def _tokens(steps: Sequence[Step], without: Sequence[str] = ()) -> Text:
    """Tokens with their probabilities and advantages."""
    said = Text()
    for step in steps:
        c = step.components[0]
        said.append(visible(c.token), "bold")
        notes = [f"{step.advantage:+.2f}"] * ("advantage" not in without) + ["forced"] * (not step.in_loss)
        more = f" ({', '.join(notes)})" if notes else ""
        said.append(f" {np.exp(c.logp):.3f}{more}   ", "dim")
    return said


def body(sample: Sample, width: int, without: Sequence[str] = ()) -> list[Any]:
    """What a sample thought and answered, for a terminal of `width` columns. without: numbers of latent steps that say nothing here."""
    rest = [step for step in sample.steps if step.kind in ("exit", "answer")]
    answer = "none: thinking never ended" if sample.answer is None else visible_lines(sample.answer)
    parts = [_mixtures(sample, width, without)] if sample.latents else []
    return [*parts, *_chain(sample), _tokens(rest, without), Text.assemble("answer: ", (answer, "bold"))]


def console() -> Console:
    """The terminal; where the output goes into a file or a pipe, lines of 120 characters unless COLUMNS says otherwise."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=_PIPE)


def _shown(samples: Sequence[Sample], show: int) -> list[Sample]:
    """The winner first, then the other kind of verdict, then the rest."""
    order = sorted(samples, key=lambda s: (not s.winner, s.correct if any(x.winner for x in samples) else -s.reward, s.index))
    return order[:show]


def _panel(sample: Sample, width: int) -> Panel:
    style = "green" if sample.correct else "red"
    return Panel(Group(*body(sample, width - 4)), title=_verdict(sample), title_align="left", border_style=style)


def print_traces(sides: Sequence[Side], console: Console, *, show: int = 2) -> None:
    """Every problem with `show` samples of each checkpoint; all of them are in the page."""
    beside = len(sides) > 1 and console.width >= _SIDE_BY_SIDE
    width = (console.width - len(sides)) // len(sides) if beside else console.width
    for at, first in enumerate(sides[0].traces):
        console.print(Rule(Text(f"problem {first.uid}")))
        console.print(Text(visible_lines(first.prompt)), Text.assemble("gold answer: ", (visible(first.gold), "bold")), sep="\n")
        picked = [s.index for s in _shown(first.samples, show)]
        columns = []
        for side in sides:
            samples = {s.index: s for s in side.traces[at].samples}
            share = np.mean([s.correct for s in samples.values()])
            columns.append(
                Group(
                    Text(f"{visible(side.name)}: {share:.2f} correct of {len(samples)}", "bold"),
                    *(_panel(samples[i], width) for i in picked),
                )
            )
        if beside:
            grid = Table.grid(expand=True, padding=(0, 1))
            grid.add_row(*columns)
            console.print(grid)
        else:
            console.print(*columns, sep="\n")


# -- page ---------------------------------------------------------------------------------------------------------------------------------


def trace_html(sides: Sequence[Side], cfg: ExperimentConfig) -> str:
    """All problems and samples as one page."""
    c = cfg.rollout.latent
    return page.render(
        "trace.html",
        title=f"Trace: {cfg.name}",
        subtitle=f"K = {c.k}, {c.law.describe(c)}; {cfg.rollout.group_size} samples a problem.",
        selection=f"first-token selection by {cfg.algo.winner_score}" + ("" if cfg.algo.first_token else " (off here: only marked)"),
        sides=sides,
        problems=range(len(sides[0].traces)),
        data={
            "sides": [{"name": s.name, "traces": [dataclasses.asdict(t) for t in s.traces]} for s in sides],
        },
        visible=visible,
        lines=visible_lines,
    )


# -- command ------------------------------------------------------------------------------------------------------------------------------


def select_problems(cfg: ExperimentConfig, tokenizer: TextTokenizer, split: str, wanted: str) -> tuple[PromptBatch, list[str]]:
    """Prompts and gold answers. wanted: a number N (the first N of the split), or ids (positions in the split) separated by commas: `3,17` or `3,`.

    Errors: UserError for a text that is neither, and for ids that the split does not have or whose prompts are too long.
    """
    try:
        ids = [int(x) for x in wanted.split(",") if x.strip()]
    except ValueError:
        raise UserError(
            f"--problems {wanted}: give a number of problems, or ids separated by commas (`3,17`; a single one as `3,`)"
        ) from None
    if not ids or min(ids) < 0 or ("," not in wanted and ids[0] < 1):
        raise UserError(f"--problems {wanted}: give at least one problem, and no negative ids")
    limit = 0 if "," in wanted else ids[0]
    found: dict[int, tuple[PromptBatch, str]] = {}
    for prompts, golds, real in prompt_batches(cfg, tokenizer, split, batch=min(limit or 256, 256), limit=limit):
        for row in np.flatnonzero(real).tolist():
            one = jax.tree.map(lambda x, row=row: np.asarray(x)[row : row + 1], prompts)
            found[int(one.uid[0])] = (one, golds[row])
    ids = list(found) if limit else list(dict.fromkeys(ids))
    missing = [i for i in ids if i not in found]
    if missing:
        raise UserError(
            f"--problems: split {split} has no problems {missing} (or their prompts are longer than data.max_prompt={cfg.data.max_prompt})"
        )
    chosen = [found[i] for i in ids]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *(p for p, _ in chosen)), [gold for _, gold in chosen]


def run(
    cfg: ExperimentConfig,
    workdir: Place,
    *,
    other: Place | None = None,
    problems: str = "2",
    split: str = "",
    out: Place | None = None,
    show: int = 2,
) -> int:
    """Traces the newest checkpoint of `workdir`, and of `other` beside it, on the same noise and under the settings of `cfg`.

    Prints `show` samples of each problem; `out`: file for a page with all of them. Errors: UserError for an invalid config or a workdir of
    another model.
    """
    multihost.require_one("trace")
    tokenizer = load_tokenizer(cfg.data)
    cfg = resolve(settle_for_run(cfg, workdir)[0], tokenizer)
    require_valid(cfg, device_count=jax.device_count(), kind="eval")
    prompts, golds = select_problems(cfg, tokenizer, split or cfg.data.eval_split, problems)
    mesh = make_mesh(cfg.mesh)
    key = key_for(cfg.seed, 0, Stream.EVALUATION)
    sides = []
    with jax.set_mesh(mesh):
        for folder in [workdir, *([other] if other else [])]:
            check_source(folder, cfg.model, tokenizer.vocabulary)
            params = load_params(folder, abstract_params(cfg.model, param_shardings(cfg.model, mesh, ROLLOUT_RULES)))
            traces, _ = trace(params, prompts, golds, key, cfg=cfg, tokenizer=tokenizer)
            sides.append(Side(f"{folder}, step {saved_step(folder)}", traces))
    if out is not None:  # first, because printing may end early (`... | head`)
        write_text(out, trace_html(sides, cfg))
    print_traces(sides, console(), show=show)
    if out is not None:
        print(out, file=sys.stderr)
    return 0
