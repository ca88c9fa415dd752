"""Evaluation of a model on a split: one noise-free greedy pass, one with the noise of training and several samples per problem, and, when asked
for, a sweep over noise scales and interventions on the latents."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import to_json
from lgrpo.config.validate import require_valid
from lgrpo.data.pipeline import prompt_batches
from lgrpo.data.prompts import TextTokenizer, load_tokenizer, resolve
from lgrpo.data.sources import load_records
from lgrpo.evaluation import counterfactual
from lgrpo.evaluation.about import Weights, Which, describe, find_weights, first_line, settled
from lgrpo.evaluation.measure import Batch, rows_of, sample
from lgrpo.evaluation.pass_at_k import Interval, bootstrap_weights
from lgrpo.evaluation.passes import COMPARED, NOISE_FREE, SAMPLED, SWEEP, UNDISTURBED, Pass, compared, plan
from lgrpo.evaluation.shards import Row, Shards, params_digest, problems_digest, to_lines
from lgrpo.evaluation.suite import benchmark_config, suite_names
from lgrpo.evaluation.summary import metric_rows, shown, summarise
from lgrpo.latent.intervene import Kind
from lgrpo.models.decoder import compute_params
from lgrpo.models.spec import abstract_params, param_shardings
from lgrpo.runs import multihost, storage
from lgrpo.runs.checkpoint import check_source, load_weights
from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag
from lgrpo.runs.metrics import progress, summary_table
from lgrpo.runs.precision import settle_for_run
from lgrpo.runs.storage import PathLike, Place, write_text
from lgrpo.sharding import ROLLOUT_RULES, make_mesh
from lgrpo.types import Finish, Params, Rollout

FORMAT = 2
"""Of the rows on disk; to be raised when their fields change, so that an older evaluation is not gone on with."""

UNCHANGED = {"counterfactual": "none", "arms": "free"}
"""Name of the noise-free pass among those that are compared with it; the curve leaves it out."""
_STEPS = ("chain_tokens", "answer_tokens")
TABLES = {"counterfactual": ("latents", ("latent_steps",)), "arms": ("arm", _STEPS), "curve": ("steps kept", _STEPS)}
"""Heading and lengths of the table of each part."""


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Intervals by metric name for each pass, effects of interventions, and one row per completion."""

    clean: dict[str, Interval]
    sampled: dict[str, Interval]
    sweep: dict[str, dict[str, Interval]]  # by noise scale
    compared: dict[str, dict[str, dict[str, Any]]]  # by part (see passes.COMPARED) and intervention, arm, or number of steps kept
    rows: list[Row]
    problems: int
    seconds: float


def evaluate(
    params: Params,
    cfg: ExperimentConfig,
    tokenizer: TextTokenizer,
    mesh: Mesh,
    *,
    split: str | None = None,
    full: bool = False,
    folder: Place | None = None,
    digest: str = "",
    interrupted: Callable[[], bool] = lambda: False,
) -> EvalResult | None:
    """All passes on `split` (default: cfg.data.eval_split), over the first cfg.evaluation.problems problems. cfg must be resolved.

    full: also the sweep and the interventions that the config asks for. folder: finished pieces are kept there and not made again;
    digest: params_digest of the weights, where it is known already. interrupted: asked before every piece of work; None is returned as soon as it says so.
    Errors: UserError when the folder holds an evaluation of other weights, problems or settings.
    """
    start = time.perf_counter()
    cfg = settled(cfg)
    split = split or cfg.data.eval_split
    batches = prompt_batches(cfg, tokenizer, split, batch=cfg.evaluation.batch, limit=cfg.evaluation.problems)
    passes = plan(cfg, full=full)
    shards = Shards(folder, _identity(digest or params_digest(params), cfg, batches) if folder else {})
    rows: dict[str, list[Row]] = {how.name: [] for how in passes}
    total = len(batches) * sum(how.samples // how.chunk for how in passes)
    with progress(total, f"eval {split}", full and cfg.logging.progress) as bar:
        for index, batch in enumerate(batches):
            work = _BatchWork(params, cfg, tokenizer, mesh, batch)
            for how in passes:
                for first in range(0, how.samples, how.chunk):
                    key = f"{how.name}-{index:05d}-{first:05d}"
                    found = shards.get(key)
                    if found is None:
                        if interrupted():
                            return None
                        found = work.measure(how, first)
                        shards.put(key, found)
                    rows[how.name] += found
                    bar.update()
    return _result(rows, passes, compared(cfg) if full else {}, cfg, time.perf_counter() - start)


class _BatchWork:
    """One batch of problems. Its noise-free rollouts are kept: interventions take their latents from the undisturbed one, and passes that differ only
    in how much of the answer counts share one."""

    def __init__(self, params: Params, cfg: ExperimentConfig, tokenizer: TextTokenizer, mesh: Mesh, batch: Batch) -> None:
        self._params, self._cfg, self._tokenizer, self._mesh, self._batch = params, cfg, tokenizer, mesh, batch
        self._kept: dict[tuple[Kind | None, int], Rollout] = {}

    def _noise_free(self, how: Pass) -> Rollout:
        """The rollout of a pass without noise, whole."""
        key = (how.kind, how.kept)
        if key not in self._kept:
            change = None
            if how.kind is not None:
                change = counterfactual.build(how.kind, self._noise_free(UNDISTURBED), np.asarray(self._batch[0].uid), how.kept)
            self._kept[key] = sample(self._params, self._cfg, self._mesh, how, self._batch[0], 0, change)
        return self._kept[key]

    def measure(self, how: Pass, first: int) -> list[Row]:
        """Rows of one chunk of samples."""
        result = self._noise_free(how) if how.greedy else sample(self._params, self._cfg, self._mesh, how, self._batch[0], first)
        return rows_of(result, self._batch, how, first, self._tokenizer, self._cfg)


_ASKED = ("samples", "sample_chunk", "batch", "noise_scale", "thinking", "train_answer", "answer")


def _identity(weights: str, cfg: ExperimentConfig, batches: Sequence[Batch]) -> dict[str, Any]:
    """What the rows depend on. Sweep, interventions, arms and curve are not in it, so that they can be added to a finished evaluation."""
    tree = to_json(cfg)
    ev = {name: tree["evaluation"][name] for name in _ASKED}
    names = ("tokenizer", "template", "max_prompt", "think_end_id", "eos_id", "more_eos_ids", "grader", "grader_seconds")
    data = {name: tree["data"][name] for name in names}
    parts = {"seed": cfg.seed, "model": tree["model"], "rollout": tree["rollout"], "evaluation": ev, "data": data}
    return parts | {"format": FORMAT, "weights": weights, "problems": problems_digest(batches)}


def _result(
    rows: dict[str, list[Row]], passes: Sequence[Pass], asked: dict[str, dict[str, Pass]], cfg: ExperimentConfig, seconds: float
) -> EvalResult:
    problems = len({row["uid"] for row in rows[NOISE_FREE]})
    weights = bootstrap_weights(problems, cfg.evaluation.bootstrap)
    others = {how.name for part in asked.values() for how in part.values()}
    numbers = {how.name: summarise(rows[how.name], weights) for how in passes if how.name not in others}
    changed = {part: {name: rows[how.name] for name, how in hows.items()} for part, hows in asked.items() if hows}
    first = {part: {UNCHANGED[part]: rows[NOISE_FREE]} if part in UNCHANGED else {} for part in changed}
    return EvalResult(
        clean=numbers[NOISE_FREE],
        sampled=numbers[SAMPLED],
        sweep={name.removeprefix(SWEEP): values for name, values in numbers.items() if name.startswith(SWEEP)},
        compared={part: counterfactual.effects(rows[NOISE_FREE], first[part] | found, weights) for part, found in changed.items()},
        rows=[row for how in passes for row in rows[how.name]],
        problems=problems,
        seconds=seconds,
    )


def table(result: EvalResult) -> str:
    """Both passes, the sweep, and what is compared with the noise-free pass, as text."""
    by_pass = {NOISE_FREE: result.clean, SAMPLED: result.sampled}
    parts = [summary_table(metric_rows(by_pass), ["metric", *by_pass])]
    if result.sweep:
        most = max((name for name in result.sampled if name.startswith("pass@")), key=lambda name: int(name[5:]))
        names = dict.fromkeys(("pass@1", most, "latent_steps", "invalid_frac"))
        rows = [{"noise": scale, **{name: shown(numbers.get(name), 3) for name in names}} for scale, numbers in result.sweep.items()]
        parts.append(summary_table(rows, ["noise", *names]))
    for part, found in result.compared.items():
        rows = counterfactual.effect_rows(found, *TABLES[part])
        parts.append(summary_table(rows, list(rows[0])))
    return "\n\n".join(parts)


def write_result(result: EvalResult, folder: Place, about: dict[str, Any]) -> None:
    """eval.json with the intervals and what they are of (`about`, see about.describe), eval.jsonl with a line per completion. Each is written at
    once or not at all. By the main process only."""
    if not multihost.is_main():
        return
    summary = {
        "about": about,
        "problems": result.problems,
        "noise_free": result.clean,
        "sampled": result.sampled,
        "sweep": result.sweep,
        **{part: result.compared.get(part, {}) for part in COMPARED},
        "seconds": result.seconds,
    }
    write_text(folder / "eval.jsonl", to_lines(result.rows))
    write_text(folder / "eval.json", json.dumps(summary, indent=1) + "\n")


def _load(cfg: ExperimentConfig, source: Place, vocabulary: str, mesh: Mesh, which: Which) -> tuple[Params, Weights]:
    """Weights as they are computed with, and which they are."""
    check_source(source, cfg.model, vocabulary)
    target = abstract_params(cfg.model, param_shardings(cfg.model, mesh, ROLLOUT_RULES))
    best = cfg.train.init_best if which == "init" else which == "best"
    params, step = load_weights(source, target, best=best)
    params = compute_params(params, cfg.model)
    return params, Weights(str(source), which, step, params_digest(params))


def run(
    cfg: ExperimentConfig,
    workdir: PathLike,
    *,
    suite: Sequence[str] = (),
    out: str = "eval",
    weights: Which = "newest",
) -> int:
    """`python -m lgrpo eval`: evaluates the newest (or best) checkpoint of the workdir, or with weights=init cfg.train.init_from.

    suite: benchmarks (see lgrpo.evaluation.suite), each in a folder of its name, instead of the config's split. out: folder of the results
    inside the workdir. Returns 0, or 75 when a signal stopped it (what is finished stays). Errors: UserError for an invalid config, data that
    is not there, a workdir without checkpoints, results of another evaluation in the folder.
    """
    workdir = storage.place(workdir)
    cfg, chosen = settle_for_run(cfg, workdir)
    if chosen:
        multihost.say(chosen)
    tokenizer = load_tokenizer(cfg.data)
    cfg = settled(resolve(cfg, tokenizer))
    require_valid(cfg, device_count=jax.device_count(), kind="eval")
    source = find_weights(cfg, workdir, weights)
    names = suite_names(suite)
    todo = {name: benchmark_config(cfg, name) for name in names} if names else {"": cfg}
    # All of the data, before anything is computed.
    sizes = {name: len(load_records(c.data, c.data.eval_split)) for name, c in todo.items()}
    asked = {name: min(cfg.evaluation.problems or size, size) for name, size in sizes.items()}
    limits = {"batch": cfg.evaluation.batch, "limit": cfg.evaluation.problems}
    problems = {name: prompt_batches(c, tokenizer, c.data.eval_split, **limits) for name, c in todo.items()}
    mesh = make_mesh(cfg.mesh)
    results: dict[str, EvalResult] = {}
    with StopFlag() as stop, jax.set_mesh(mesh):
        params, which = _load(cfg, source, tokenizer.vocabulary, mesh, weights)
        about = {name: describe(c, which, problems[name], sizes[name], asked[name]) for name, c in todo.items()}
        if multihost.is_main():
            print(first_line(list(about.values()), [asked[name] - a["left_out"] for name, a in about.items()]), flush=True)
        for name, each in todo.items():
            folder = workdir / out / name
            found = evaluate(params, each, tokenizer, mesh, full=True, folder=folder, digest=which.digest, interrupted=stop.agreed)
            if found is None:
                multihost.say("stopped; the batches that were done are kept; run the same command again")
                return EXIT_PREEMPTED
            results[name] = found
            _say_what_stands_out(name or "eval", found, about[name])
            write_result(found, folder, about[name])
            if multihost.is_main():
                print((f"\n== {name}\n" if name else "") + table(found))
    if names and multihost.is_main():
        write_text(workdir / out / "suite.json", json.dumps(averages(results), indent=1) + "\n")
        print("\n" + suite_table(results))
    return 0


def _say_what_stands_out(name: str, found: EvalResult, about: dict[str, Any]) -> None:
    """Problems that were left out, and completions that finished without ever answering."""
    if about["left_out"]:
        multihost.say(f"{name}: {about['left_out']} of {found.problems + about['left_out']} problems left out: longer than data.max_prompt")
    finished = [row for row in found.rows if row["pass"] == NOISE_FREE and row["finish"] == Finish.EOS.name]
    silent = sum(row["chain_tokens"] == row["completion_tokens"] for row in finished)
    if about["thinks_in"] == "tokens" and 2 * silent > len(finished):
        multihost.say(
            f"{name}: {silent} of {len(finished)} finished completions never ended their thinking, so nothing of them was graded; "
            "a model that does not think is evaluated with --evaluation.thinking False"
        )


def averages(results: dict[str, EvalResult]) -> dict[str, dict[str, float]]:
    """Plain mean over data sets of the metrics that all of them have, as the paper reports it."""

    def mean(parts: list[dict[str, Interval]]) -> dict[str, float]:
        return {name: float(np.mean([p[name]["value"] for p in parts])) for name in parts[0] if all(name in p for p in parts)}

    return {"noise_free": mean([r.clean for r in results.values()]), "sampled": mean([r.sampled for r in results.values()])}


def suite_table(results: dict[str, EvalResult]) -> str:
    """A line per data set, and their plain mean."""
    metrics = ("pass@1", "latent_steps", "answer_tokens", "truncated_frac")
    clean, sampled = "noise_free pass@1", {m: f"sampled {m}" for m in metrics}
    rows = [
        {"data": name, "problems": r.problems, clean: shown(r.clean["pass@1"]), **{sampled[m]: shown(r.sampled.get(m)) for m in metrics}}
        for name, r in results.items()
    ]
    mean = averages(results)
    means = {sampled[m]: f"{mean['sampled'][m]:.4f}" for m in metrics}
    rows.append({"data": "mean of sets", "problems": "", clean: f"{mean['noise_free']['pass@1']:.4f}", **means})
    return summary_table(rows, list(rows[0]))
