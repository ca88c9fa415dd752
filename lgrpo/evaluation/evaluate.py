"""Evaluation of a model on a split: one noise-free greedy pass, and one with the noise of training and several samples per problem."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lgrpo.checkpoint import load_params
from lgrpo.config import AnswerConfig, ExperimentConfig, TrainConfig
from lgrpo.data.pipeline import prompt_batches
from lgrpo.data.prompts import TextTokenizer, load_tokenizer, resolve
from lgrpo.evaluation.pass_at_k import bootstrap_mean, pass_at_k
from lgrpo.keys import Stream, key_for
from lgrpo.latent.rollout import rollout
from lgrpo.metrics import summary_table
from lgrpo.models.decoder import compute_params
from lgrpo.models.spec import abstract_params, param_shardings
from lgrpo.rewards.score import completion_texts, score
from lgrpo.sharding import ROLLOUT_RULES, make_mesh, put_batch
from lgrpo.types import Finish, Params, Rollout
from lgrpo.validate import require_valid

Interval = dict[str, float]
_rollout = jax.jit(rollout, static_argnames=("cfg",))


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Intervals by metric name for both passes, and one record per completion."""

    clean: dict[str, Interval]
    sampled: dict[str, Interval]
    rows: list[dict[str, Any]]
    seconds: float


def _pass_config(cfg: ExperimentConfig, *, noisy: bool) -> ExperimentConfig:
    """The part of the config that the rollout depends on, so that runs which differ elsewhere share one compilation."""
    answer = AnswerConfig(sampler="greedy", temperature=cfg.rollout.answer.temperature)
    if noisy:
        answer = cfg.rollout.answer if cfg.evaluation.train_answer else cfg.evaluation.answer
    part = dataclasses.replace(cfg.rollout, group_size=cfg.evaluation.samples if noisy else 1, answer=answer)
    return ExperimentConfig(model=cfg.model, data=cfg.data, rollout=part, train=TrainConfig(logprob_chunk=cfg.train.logprob_chunk))


def _lengths(result: Rollout) -> dict[str, np.ndarray]:
    """Per completion [N]."""
    total = np.asarray(result.mask).sum(-1)
    chain, thought = np.asarray(result.chain_len), np.asarray(result.thought)
    finish = np.asarray(result.finish)
    return {
        "chain_tokens": chain,
        "latent_steps": np.asarray(result.is_latent).sum(-1),
        "answer_tokens": total - chain - thought,
        "completion_tokens": total,
        "invalid_frac": ~np.isin(finish, (Finish.EOS, Finish.FORCED_EXIT)),
        "forced_frac": finish == Finish.FORCED_EXIT,
    }


def _run_pass(
    params: Params, cfg: ExperimentConfig, tokenizer: TextTokenizer, mesh: Mesh, *, noisy: bool, split: str
) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
    """Evaluates one way of sampling. Returns intervals over problems and per-completion records."""
    spec, ev = _pass_config(cfg, noisy=noisy), cfg.evaluation
    scale = 0.0
    if noisy:
        scale = ev.noise_scale if ev.noise_scale >= 0 else cfg.rollout.latent.noise_scale
    size, ways = spec.rollout.group_size, mesh.shape["data"] * mesh.shape["fsdp"]
    table: dict[str, list[np.ndarray]] = {}
    rows: list[dict[str, Any]] = []
    for prompts, answers, real in prompt_batches(cfg, tokenizer, split, batch=ev.batch, limit=ev.problems):
        placed = put_batch(prompts, mesh) if ev.batch % ways == 0 else prompts
        noise = jnp.full((len(answers) * size,), scale, jnp.float32)
        result = jax.device_get(_rollout(params, placed, key_for(cfg.seed, 0, Stream.EVALUATION), cfg=spec, noise_scale=noise))
        scored = score(result, answers, tokenizer, cfg)
        columns = {"correct": scored.rewards, **_lengths(result)}
        for name, values in columns.items():
            table.setdefault(name, []).append(np.asarray(values, np.float64).reshape(-1, size)[real])
        texts = completion_texts(result, tokenizer, cfg)
        for n in np.flatnonzero(np.repeat(real, size)):
            b = n // size
            lengths = {name: float(values[n]) for name, values in columns.items()}
            rows.append(
                {"uid": int(prompts.uid[b]), "sample": int(n % size), "noisy": noisy, "gold": answers[b], "text": texts[n], **lengths}
            )
    return _intervals({name: np.concatenate(parts) for name, parts in table.items()}, ev.bootstrap), rows


def _intervals(table: dict[str, np.ndarray], resamples: int) -> dict[str, Interval]:
    """Arrays [problems, samples] -> intervals; pass@k for k = 1, 2, 4, ... up to the number of samples."""
    correct = table.pop("correct")
    samples = correct.shape[1]
    out = {}
    k = 1
    while k <= samples:
        out[f"pass@{k}"] = bootstrap_mean(pass_at_k(samples, correct.sum(1).astype(int), k), resamples=resamples)
        k *= 2
    return out | {name: bootstrap_mean(values.mean(1), resamples=resamples) for name, values in table.items()}


def evaluate(params: Params, cfg: ExperimentConfig, tokenizer: TextTokenizer, mesh: Mesh, *, split: str | None = None) -> EvalResult:
    """Both passes on `split` (default: cfg.data.eval_split), over the first cfg.evaluation.problems problems. cfg must be resolved."""
    start = time.perf_counter()
    split = split or cfg.data.eval_split
    clean, clean_rows = _run_pass(params, cfg, tokenizer, mesh, noisy=False, split=split)
    sampled, sampled_rows = _run_pass(params, cfg, tokenizer, mesh, noisy=True, split=split)
    return EvalResult(clean, sampled, clean_rows + sampled_rows, time.perf_counter() - start)


def table(result: EvalResult) -> str:
    """Both passes as text."""

    def show(interval: Interval | None) -> str:
        return "-" if interval is None else f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"

    rows = [{"metric": name, "noise-free": show(result.clean.get(name)), "sampled": show(result.sampled[name])} for name in result.sampled]
    return summary_table(rows, ["metric", "noise-free", "sampled"])


def write_result(result: EvalResult, folder: pathlib.Path) -> None:
    """eval.json with the intervals and eval.jsonl with a line per completion."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"noise_free": result.clean, "sampled": result.sampled, "seconds": result.seconds}
    (folder / "eval.json").write_text(json.dumps(summary, indent=1) + "\n")
    with (folder / "eval.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in result.rows)


def run(cfg: ExperimentConfig, workdir: str | pathlib.Path) -> int:
    """`python -m lgrpo eval`: evaluates the newest checkpoint of the workdir, or cfg.train.init_from when the workdir has none."""
    workdir = pathlib.Path(workdir)
    tokenizer = load_tokenizer(cfg.data)
    cfg = resolve(cfg, tokenizer)
    require_valid(cfg, device_count=jax.device_count(), kind="eval")
    mesh = make_mesh(cfg.mesh)
    source = pathlib.Path(cfg.train.init_from) if cfg.train.init_from and not (workdir / "checkpoints").exists() else workdir
    params = load_params(source, abstract_params(cfg.model, param_shardings(cfg.model, mesh, ROLLOUT_RULES)))
    with jax.set_mesh(mesh):
        result = evaluate(compute_params(params, cfg.model), cfg, tokenizer, mesh)
    write_result(result, workdir / "eval")
    print(table(result))
    return 0
