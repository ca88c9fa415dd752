"""Evaluation of a model on a split: one noise-free greedy pass, one with the noise of training and several samples per problem, and, when asked
for, a sweep over noise scales and interventions on the latents."""

from __future__ import annotations

import dataclasses
import json
import pathlib
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
from lgrpo.evaluation.measure import COUNTERFACTUAL, NOISE_FREE, SAMPLED, SWEEP, Batch, Pass, plan, rows_of, sample
from lgrpo.evaluation.pass_at_k import Interval, bootstrap_weights
from lgrpo.evaluation.shards import Row, Shards, params_digest, problems_digest, to_lines, write_text
from lgrpo.evaluation.suite import benchmark_config, suite_names
from lgrpo.evaluation.summary import metric_rows, shown, summarise
from lgrpo.models.decoder import compute_params
from lgrpo.models.spec import abstract_params, param_shardings
from lgrpo.runs import multihost
from lgrpo.runs.checkpoint import check_source, load_params
from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag
from lgrpo.runs.metrics import progress, summary_table
from lgrpo.sharding import ROLLOUT_RULES, make_mesh
from lgrpo.types import Params

FORMAT = 1
"""Of the rows on disk; to be raised when their fields change, so that an older evaluation is not gone on with."""


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Intervals by metric name for each pass, effects of interventions, and one row per completion."""

    clean: dict[str, Interval]
    sampled: dict[str, Interval]
    sweep: dict[str, dict[str, Interval]]  # by noise scale
    counterfactual: dict[str, dict[str, Any]]  # by intervention
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
    folder: pathlib.Path | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> EvalResult | None:
    """All passes on `split` (default: cfg.data.eval_split), over the first cfg.evaluation.problems problems. cfg must be resolved.

    full: also the sweep and the interventions that the config asks for. folder: finished pieces are kept there and not made again.
    interrupted: asked before every piece of work; None is returned as soon as it says so.
    Errors: UserError when the folder holds an evaluation of other weights, problems or settings.
    """
    start = time.perf_counter()
    split = split or cfg.data.eval_split
    batches = prompt_batches(cfg, tokenizer, split, batch=cfg.evaluation.batch, limit=cfg.evaluation.problems)
    passes = plan(cfg, full=full)
    shards = Shards(folder, _identity(params, cfg, batches) if folder else {})
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
    return _result(rows, passes, cfg, time.perf_counter() - start)


class _BatchWork:
    """One batch of problems. Its noise-free rollout is kept: interventions take their latents from it."""

    def __init__(self, params: Params, cfg: ExperimentConfig, tokenizer: TextTokenizer, mesh: Mesh, batch: Batch) -> None:
        self._params, self._cfg, self._tokenizer, self._mesh, self._batch = params, cfg, tokenizer, mesh, batch
        self._undisturbed: Any = None

    def _noise_free(self) -> Any:
        if self._undisturbed is None:
            self._undisturbed = sample(self._params, self._cfg, self._mesh, Pass(NOISE_FREE, 0.0), self._batch[0])
        return self._undisturbed

    def measure(self, how: Pass, first: int) -> list[Row]:
        """Rows of one chunk of samples."""
        if how.name == NOISE_FREE:
            result = self._noise_free()
        else:
            change = None
            if how.kind is not None:
                change = counterfactual.build(how.kind, self._noise_free(), np.asarray(self._batch[0].uid))
            result = sample(self._params, self._cfg, self._mesh, how, self._batch[0], first, change)
        return rows_of(result, self._batch, how, first, self._tokenizer, self._cfg)


def _identity(params: Params, cfg: ExperimentConfig, batches: Sequence[Batch]) -> dict[str, Any]:
    """What the rows depend on. The sweep and the interventions are not in it, so that they can be added to a finished evaluation."""
    tree = to_json(cfg)
    ev = {name: tree["evaluation"][name] for name in ("samples", "sample_chunk", "batch", "noise_scale", "train_answer", "answer")}
    names = ("tokenizer", "template", "max_prompt", "think_end_id", "eos_id", "grader", "grader_seconds")
    names += ("more_eos_ids",) if cfg.data.more_eos_ids else ()  # what was computed before there were several still counts
    data = {name: tree["data"][name] for name in names}
    parts = {"seed": cfg.seed, "model": tree["model"], "rollout": tree["rollout"], "evaluation": ev, "data": data}
    return parts | {"format": FORMAT, "weights": params_digest(params), "problems": problems_digest(batches)}


def _result(rows: dict[str, list[Row]], passes: Sequence[Pass], cfg: ExperimentConfig, seconds: float) -> EvalResult:
    problems = len({row["uid"] for row in rows[NOISE_FREE]})
    weights = bootstrap_weights(problems, cfg.evaluation.bootstrap)
    numbers = {how.name: summarise(rows[how.name], weights) for how in passes if how.kind is None}
    changed = {how.name.removeprefix(COUNTERFACTUAL): rows[how.name] for how in passes if how.kind is not None}
    return EvalResult(
        clean=numbers[NOISE_FREE],
        sampled=numbers[SAMPLED],
        sweep={name.removeprefix(SWEEP): values for name, values in numbers.items() if name.startswith(SWEEP)},
        counterfactual=counterfactual.effects(rows[NOISE_FREE], changed, weights) if changed else {},
        rows=[row for how in passes for row in rows[how.name]],
        problems=problems,
        seconds=seconds,
    )


def table(result: EvalResult) -> str:
    """Both passes, the sweep and the interventions as text."""
    by_pass = {"noise-free": result.clean, "sampled": result.sampled}
    parts = [summary_table(metric_rows(by_pass), ["metric", *by_pass])]
    if result.sweep:
        most = max((name for name in result.sampled if name.startswith("pass@")), key=lambda name: int(name[5:]))
        names = dict.fromkeys(("pass@1", most, "latent_steps", "invalid_frac"))
        rows = [{"noise": scale, **{name: shown(numbers.get(name), 3) for name in names}} for scale, numbers in result.sweep.items()]
        parts.append(summary_table(rows, ["noise", *names]))
    if result.counterfactual:
        rows = counterfactual.effect_rows(result.counterfactual)
        parts.append(summary_table(rows, list(rows[0])))
    return "\n\n".join(parts)


def write_result(result: EvalResult, folder: pathlib.Path, **notes: Any) -> None:
    """eval.json with the intervals (and `notes`), eval.jsonl with a line per completion. Each is written at once or not at all.

    By the main process only.
    """
    if not multihost.is_main():
        return
    summary = {
        **notes,
        "problems": result.problems,
        "noise_free": result.clean,
        "sampled": result.sampled,
        "sweep": result.sweep,
        "counterfactual": result.counterfactual,
        "seconds": result.seconds,
    }
    write_text(folder / "eval.jsonl", to_lines(result.rows))
    write_text(folder / "eval.json", json.dumps(summary, indent=1) + "\n")


def run(cfg: ExperimentConfig, workdir: str | pathlib.Path, *, suite: Sequence[str] = (), out: str | pathlib.Path = "eval") -> int:
    """`python -m lgrpo eval`: evaluates the newest checkpoint of the workdir, or cfg.train.init_from when the workdir has none.

    suite: benchmarks (see lgrpo.evaluation.suite), each in a folder of its name, instead of the config's split. out: folder of the results
    inside the workdir. Returns 0, or 75 when a signal stopped it (what is finished stays). Errors: UserError for an invalid config, data that
    is not there, results of another evaluation in the folder.
    """
    workdir = pathlib.Path(workdir)
    tokenizer = load_tokenizer(cfg.data)
    cfg = resolve(cfg, tokenizer)
    require_valid(cfg, device_count=jax.device_count(), kind="eval")
    names = suite_names(suite)
    todo = {name: benchmark_config(cfg, name) for name in names} if names else {"": cfg}
    sizes = {name: len(load_records(c.data, c.data.eval_split)) for name, c in todo.items()}  # all of them, before anything is computed
    mesh = make_mesh(cfg.mesh)
    source = pathlib.Path(cfg.train.init_from) if cfg.train.init_from and not (workdir / "checkpoints").exists() else workdir
    check_source(source, cfg.model, tokenizer.vocabulary)
    params = load_params(source, abstract_params(cfg.model, param_shardings(cfg.model, mesh, ROLLOUT_RULES)))
    results = {}
    with StopFlag() as stop, jax.set_mesh(mesh):
        params = compute_params(params, cfg.model)
        for name, each in todo.items():
            folder = workdir / out / name
            found = evaluate(params, each, tokenizer, mesh, full=True, folder=folder, interrupted=stop.agreed)
            if found is None:
                multihost.say("stopped; the batches that were done are kept; run the same command again")
                return EXIT_PREEMPTED
            results[name] = found
            wanted = min(cfg.evaluation.problems or sizes[name], sizes[name])
            left_out = wanted - results[name].problems
            if left_out:
                multihost.say(f"{name or 'eval'}: {left_out} of {wanted} problems left out: longer than data.max_prompt")
            write_result(results[name], folder, checkpoint=str(source), left_out=left_out)
            print((f"\n== {name}\n" if name else "") + table(results[name]))
    if names and multihost.is_main():
        write_text(workdir / out / "suite.json", json.dumps(averages(results), indent=1) + "\n")
        print("\n" + suite_table(results))
    return 0


def averages(results: dict[str, EvalResult]) -> dict[str, dict[str, float]]:
    """Plain mean over data sets of the metrics that all of them have, as the paper reports it."""

    def mean(parts: list[dict[str, Interval]]) -> dict[str, float]:
        return {name: float(np.mean([p[name]["value"] for p in parts])) for name in parts[0] if all(name in p for p in parts)}

    return {"noise_free": mean([r.clean for r in results.values()]), "sampled": mean([r.sampled for r in results.values()])}


def suite_table(results: dict[str, EvalResult]) -> str:
    """A line per data set, and their plain mean."""
    metrics = ("pass@1", "latent_steps", "answer_tokens", "truncated_frac")
    rows = [
        {"data": name, "noise-free": shown(r.clean["pass@1"]), **{m: shown(r.sampled.get(m)) for m in metrics}}
        for name, r in results.items()
    ]
    mean = averages(results)
    rows.append({"data": "mean", "noise-free": f"{mean['noise_free']['pass@1']:.4f}", **{m: f"{mean['sampled'][m]:.4f}" for m in metrics}})
    return summary_table(rows, ["data", "noise-free", *metrics])
