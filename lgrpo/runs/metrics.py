"""Metrics: what each name means, the writers that they go to, a progress bar and plain-text tables."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np
from tqdm.auto import tqdm

from lgrpo.config import LoggingConfig
from lgrpo.runs import multihost, storage
from lgrpo.runs.compiling import CompileClock
from lgrpo.runs.writers.copies import IDS, Copy, open_copies
from lgrpo.runs.writers.jsonl import FILE, SAMPLES, Jsonl, read_metrics
from lgrpo.runs.writers.mirror import Mirror
from lgrpo.runs.writers.writer import Entry, Run

_NUMBER = re.compile(r"-|[+-]?(\d|\.\d|nan|inf)")  # how a cell of a numeric column begins
PREFIXES = ("eval/", "grade/")
"""Names under these are made at run time: eval/pass@4, grade/<error category of the grader> (share of completions)."""


class Metric(NamedTuple):
    """unit; how values of micro-batches, rows and devices are combined; what it says."""

    unit: str
    reducer: str
    meaning: str


_ROWS, _LOSS = "mean over completions", "mean over steps in the loss"

METRICS: dict[str, Metric] = {
    "reward/mean": Metric("1", _ROWS, "reward"),
    "reward/correct": Metric("share", _ROWS, "correct answers, whatever the reward pays for"),
    "reward/valid_mean": Metric("1", "mean over finished completions", "reward of those that finished"),
    "rollout/latent_steps": Metric("steps", _ROWS, "latent steps"),
    "rollout/chain_tokens": Metric("steps", _ROWS, "steps before the end of thinking"),
    "rollout/answer_tokens": Metric("tokens", _ROWS, "tokens after the end of thinking"),
    "rollout/completion_tokens": Metric("steps", _ROWS, "latent steps and tokens together"),
    "rollout/latent_share": Metric("share", "mean over steps", "steps that feed a mixture"),
    "rollout/invalid_frac": Metric("share", _ROWS, "completions that did not finish"),
    "rollout/truncated_frac": Metric("share", _ROWS, "completions cut at max_new_tokens"),
    "rollout/forced_frac": Metric("share", _ROWS, "completions whose thinking was ended by max_latent"),
    "rollout/nan_frac": Metric("share", _ROWS, "completions with non-finite logits"),
    "dynamic/rounds": Metric("rounds", "sum", "generations that the step needed"),
    "dynamic/informative_frac": Metric("share", "mean over generated groups", "groups whose valid rewards differ"),
    "dynamic/used_frac": Metric("share", "last", "informative groups the step trained on, of those it wanted"),
    "dynamic/starved": Metric("steps", "last", "1 when the step found too few informative groups"),
    "dynamic/buffered": Metric("groups", "last", "surplus groups waiting for the next step"),
    "policy/loss": Metric("nats", _LOSS, "clipped policy loss"),
    "policy/ratio": Metric("1", _LOSS, "new over behaviour probability"),
    "policy/ratio_max": Metric("1", "max", "largest ratio"),
    "policy/clip_frac": Metric("share", _LOSS, "steps whose gradient the clip removed"),
    "policy/clip_frac_lower": Metric("share", _LOSS, "steps at the dual clip"),
    "policy/kl_k1": Metric("nats", _LOSS, "behaviour minus new log-prob"),
    "policy/kl_k3": Metric("nats", _LOSS, "KL to the frozen start, k3 estimator"),
    "policy/logp": Metric("nats", _LOSS, "log-prob under the trained policy"),
    "policy/replay_gap": Metric(
        "nats", "max", "distance of learner's and sampler's log-probs; rounding only before the first update of a step"
    ),
    "sft/loss": Metric("nats", "sum of the parts", "supervised loss"),
    "sft/ce": Metric("nats", "mean over token steps", "cross-entropy of the end of thinking, the answer and an explicit chain"),
    "sft/kl": Metric("nats", "mean over latent steps", "KL from labels to policy, times kl_weight"),
    "sft/tokens": Metric("positions", "sum over the update", "real positions that its forward passes ran over, prompts included"),
    "sft/heldout_ce": Metric("nats", "mean over token steps", "cross-entropy on held-out records, clean labels"),
    "sft/heldout_kl": Metric("nats", "mean over latent steps", "KL from held-out clean labels to policy, times kl_weight"),
    "grad/norm": Metric("1", "max over updates", "global gradient norm before clipping"),
    "grad/nonfinite": Metric("updates", "last", "skipped non-finite updates in a row"),
    "grad/skipped": Metric("updates", "last", "skipped non-finite updates in all"),
    "grad/empty": Metric("", "mean", "share of the updates in which no position counted: nothing moved"),
    "optim/lr": Metric("1", "last", "learning rate"),
    "run/rollback": Metric("step", "once", "the run went back to this step (checkpoint.rollback) and on from there"),
    "time/rollout_s": Metric("s", "sum over generations", "sampling"),
    "time/grade_s": Metric("s", "sum over generations", "grading on the host"),
    "time/train_s": Metric("s", "last", "updates"),
    "time/data_s": Metric("s", "last", "supervised training: making a batch and sending it to the devices"),
    "time/compile_s": Metric("s", "sum since the last line", "lowering and compiling, inside whatever called a program first"),
    "time/step_s": Metric("s", "last", "one step, without evaluation and saving"),
    "time/host_frac": Metric("share", "last", "part of the step outside sampling and updates"),
    "perf/flop_total": Metric(
        "FLOP", "sum over the run", "operations of all matrix products of sampling and updates so far, this run alone"
    ),
    "perf/seconds_total": Metric("s", "sum over the run", "steps so far, without compilation, evaluation and saving"),
    "perf/tokens_per_s": Metric("steps/s", "last", "latent steps and tokens generated per second of sampling"),
}

_LATENT, _PARTS, _GROUPS = "mean over latent steps", "mean over latent components", "mean over groups of the batch"
_MOVED, _ROOT = "mean over latent components in the loss with an advantage", "root of the mean of squares over steps in the loss"
_EDGES = ("below_-2", "-2_to_-1", "-1_to_0", "0_to_1", "1_to_2", "2_to_3", "3_to_4", "4_to_5", "from_5")

METRICS |= {  # lgrpo.algos.diagnostics; read docs/diagnostics.md
    "diag/entropy": Metric("nats", _LATENT, "entropy of the mixture weights"),
    "diag/effective_support": Metric("tokens", _LATENT, "exp of that entropy"),
    "diag/max_weight": Metric("share", _LATENT, "largest mixture weight"),
    "diag/outside_top_k": Metric("share", _LATENT, "mixture mass on tokens outside the noiseless top-K"),
    "diag/end_probability": Metric("share", _LATENT, "probability of the end of thinking where it was not taken"),
    "diag/end_probability_max": Metric("share", "max", "largest of these"),
    "diag/exit_probability": Metric("share", "mean over steps that ended thinking", "their probability"),
    "diag/misaligned_share": Metric("share", _MOVED, "components that the update moves against the advantage"),
    "diag/misaligned_mass": Metric("share", "mean over latent steps in the loss with an advantage", "mixture mass of these components"),
    "diag/misaligned_share_good": Metric("share", _MOVED, "misaligned_share where the advantage is positive"),
    "diag/misaligned_share_bad": Metric("share", _MOVED, "misaligned_share where the advantage is negative"),
    "diag/score_gradient_rate": Metric(
        "share", "mean over latent components in the loss", "components below their log-prob without positive A"
    ),
    "diag/clamp_low": Metric("share", f"{_PARTS}, first update", "noise at the low end of the clamp"),
    "diag/clamp_high": Metric("share", f"{_PARTS}, first update", "noise at the high end of the clamp"),
    "diag/gradient_latent": Metric("1", _ROOT, "derivative of the loss in the log-probs of latent steps"),
    "diag/gradient_exit": Metric("1", _ROOT, "the same of steps that ended thinking"),
    "diag/gradient_answer": Metric("1", _ROOT, "the same of all other tokens"),
    "diag/gradient_latent_components": Metric("1", _ROOT, "derivative in the log-probs of latent components, norm of each step"),
    "diag/winner_share": Metric("share", _GROUPS, "groups with a winner"),
    "diag/winner_latent_share": Metric("share", "mean over the winners' steps", "steps of winners that feed a mixture"),
    **{f"diag/margin_hist_{name}": Metric("share", _PARTS, f"score minus log-prob {name.replace('_', ' ')}") for name in _EDGES},
}


def check_names(names: Iterable[str]) -> None:
    """Errors: ValueError listing names that are neither in METRICS nor under one of PREFIXES."""
    unknown = sorted(n for n in names if n not in METRICS and not n.startswith(PREFIXES))
    if unknown:
        raise ValueError(
            f"metrics: {', '.join(unknown)} not declared; add each to lgrpo.runs.metrics.METRICS with unit, reducer and meaning"
        )


class MetricsWriter:
    """What the main process writes of a run: the record, and the copies that cfg asks for. Silent on the others. Also a context manager."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        cfg: LoggingConfig,
        resume_step: int = 0,
        clock: CompileClock | None = None,
        first: Mapping[str, float] | None = None,
        name: str = "run",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """resume_step: finished steps of the checkpoint that the run goes on from; later lines are dropped, since they will come again.
        clock: its laps become time/compile_s of each line. first: goes into the first line that is written, once.
        name, config: what trackers show of the run. Errors: UserError for a tracker that is not installed."""
        self._first, self._clock, self._folder = dict(first or {}), clock, storage.place(workdir)
        self._record: Jsonl | None = None
        self._mirror: Mirror | None = None
        self._copies: list[Copy] = []
        if not multihost.is_main():
            return
        label = f"{name}-{self._folder.name}"
        if storage.remote(self._folder):
            self._mirror = Mirror(self._folder, files=(FILE, SAMPLES, IDS), folders=("tensorboard",))
            self._folder = self._mirror.folder
        run = Run(self._folder, resume_step, label, cfg.project, config or {})
        self._record = Jsonl()
        self._record.open(run)
        self._copies = open_copies(cfg, run, self._record.seen, anew="run/rollback" in self._first)
        if self._mirror is not None:
            self._mirror.start()

    def write(self, step: int, values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """One line {"step": step, "area/name": value, ...}, flushed, and a table of samples. Values are numbers or arrays of one element.

        Errors: ValueError for a name that is not declared.
        """
        if values:
            values, self._first = {**values, **self._first}, {}
        check_names(values)
        if self._record is None:
            return
        if values and self._clock is not None:
            values = {**values, "time/compile_s": self._clock.lap()}
        entry = Entry(int(step), {name: float(np.asarray(value).item()) for name, value in values.items()}, samples)
        for writer in self._writers():
            writer.write(entry)

    def _writers(self) -> list[Jsonl | Copy]:
        """The record first, so that no copy has what it lacks."""
        return [] if self._record is None else [self._record, *self._copies]

    def read(self) -> list[dict[str, Any]]:
        """All lines so far, those of the runs before a resume included."""
        return read_metrics(self._folder) if (self._folder / FILE).exists() else []

    def flush(self) -> None:
        """Before a checkpoint: what was written is where the workdir is. Errors: UserError when a bucket does not take it."""
        if self._mirror is not None:
            self._mirror.send()

    def close(self) -> None:
        """Close all writers; may be called twice. Errors: UserError when a bucket does not take the rest of the record."""
        for writer in self._writers():
            writer.close()
        if self._mirror is not None:
            mirror, self._mirror = self._mirror, None
            mirror.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return str(value)


def summary_table(rows: Sequence[Mapping[str, Any] | Sequence[Any]], columns: Sequence[str]) -> str:
    """Plain-text table of rows, each a dict by column name or its cells in order. Numbers to the right; None and missing values as "-"."""
    table = [[row.get(c) for c in columns] if isinstance(row, Mapping) else list(row) for row in rows]
    cells = [[_cell(value) for value in row] for row in table]
    widths = [max([len(c), *(len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    right = [all(_NUMBER.match(row[i]) for row in cells) for i in range(len(columns))]

    def line(texts: Sequence[str]) -> str:
        return "  ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right, strict=True)).rstrip()

    return "\n".join([line(columns), line(["-" * w for w in widths]), *(line(row) for row in cells)])


class _Lines:
    """For a bar in a log file: what would overwrite a line becomes a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self._stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self._stream.flush()


class _Bar(tqdm):
    """tqdm whose postfix waits for the next time the bar is drawn."""

    def set_postfix(self, ordered_dict: Any = None, refresh: bool = True, **values: Any) -> None:
        super().set_postfix(ordered_dict, refresh=False, **values)


def progress(iterable_or_total: Iterable[Any] | int, desc: str, enabled: bool, initial: int = 0) -> tqdm:
    """A tqdm bar on stderr over an iterable, or to be updated by hand up to a total, of which `initial` are done. Silent unless enabled on the main process."""
    # In a log file a line a minute, instead of a line that grows with every step.
    common = {"desc": desc, "disable": not (enabled and multihost.is_main()), "initial": initial, "file": sys.stderr, "dynamic_ncols": True}
    if not common["disable"] and not sys.stderr.isatty():
        common |= {"file": _Lines(sys.stderr), "mininterval": 60.0, "maxinterval": 60.0, "dynamic_ncols": False, "ncols": 0}
    if isinstance(iterable_or_total, int):
        return _Bar(total=iterable_or_total, **common)
    return _Bar(iterable_or_total, **common)
