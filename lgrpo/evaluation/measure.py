"""One way of sampling (a pass) over one batch of problems: rollout, grading, a row per completion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lgrpo.config import AnswerConfig, DataConfig, ExperimentConfig, TrainConfig
from lgrpo.data.prompts import TextTokenizer
from lgrpo.evaluation.passes import Pass
from lgrpo.evaluation.shards import Row
from lgrpo.keys import Stream, key_for
from lgrpo.latent.buckets import trim_prompts
from lgrpo.latent.intervene import Intervention
from lgrpo.latent.rollout import rollout
from lgrpo.rewards.grade import grade_all
from lgrpo.rewards.score import completion_texts
from lgrpo.runs import multihost
from lgrpo.sharding import batch_ways, put_batch
from lgrpo.types import Finish, Params, PromptBatch, Rollout

Batch = tuple[PromptBatch, list[str], np.ndarray]
"""Prompts, gold answers, real bool [B]: False for the repeated rows that fill the last batch."""
_rollout = jax.jit(rollout, static_argnames=("cfg",))


def static_config(cfg: ExperimentConfig, how: Pass) -> ExperimentConfig:
    """What of the config the rollout depends on, and nothing else: passes, data sets and runs that share it share one compilation."""
    answer = cfg.rollout.answer if cfg.evaluation.train_answer else cfg.evaluation.answer
    if how.greedy:
        answer = AnswerConfig(sampler="greedy", temperature=cfg.rollout.answer.temperature)
    return ExperimentConfig(
        model=cfg.model,
        data=DataConfig(think_end_id=cfg.data.think_end_id, eos_id=cfg.data.eos_id, more_eos_ids=cfg.data.more_eos_ids),
        rollout=dataclasses.replace(cfg.rollout, group_size=how.chunk, answer=answer),
        train=TrainConfig(logprob_chunk=cfg.train.logprob_chunk),
    )


def sample(
    params: Params,
    cfg: ExperimentConfig,
    mesh: Mesh,
    how: Pass,
    prompts: PromptBatch,
    first: int = 0,
    intervention: Intervention | None = None,
) -> Rollout:
    """Samples first .. first + chunk - 1 of every prompt, on the host: N = B * chunk rows. The noise scale is no part of the compilation."""
    rows = prompts.tokens.shape[0] * how.chunk
    divides = prompts.tokens.shape[0] % batch_ways(mesh) == 0
    prompts = trim_prompts(prompts, cfg.data.prompt_bucket)
    placed = put_batch(prompts, mesh) if divides else prompts
    key = key_for(cfg.seed, 0, Stream.EVALUATION)
    noise = np.full((rows,), how.noise_scale, np.float32)
    settings = {"cfg": static_config(cfg, how), "noise_scale": noise, "first_sample": np.int32(first)}
    return multihost.host(_rollout(params, placed, key, **settings, intervention=intervention))


def within(result: Rollout, budget: int) -> Rollout:
    """`result` as if it had been cut after `budget` tokens of the answer, the end of sequence among them; 0: as it is. On the host, [N, ...]."""
    if not budget:
        return result
    mask, chain, thought = (np.asarray(x) for x in (result.mask, result.chain_len, result.thought))
    last = np.where(thought, chain + 1 + budget, mask.shape[1])
    kept = mask & (np.arange(mask.shape[1]) < last[:, None])
    finish = np.where((kept == mask).all(-1), result.finish, Finish.LENGTH)
    return result.replace(mask=kept, loss_mask=result.loss_mask & kept, finish=finish.astype(np.int32))


def rows_of(result: Rollout, batch: Batch, how: Pass, first: int, tokenizer: TextTokenizer, cfg: ExperimentConfig) -> list[Row]:
    """A row per completion of a real problem: what was said, the verdict, how it ended, and its lengths. Several processes share the grading."""
    prompts, answers, real = batch
    result = within(result, how.budget)
    thinking = cfg.evaluation.thinking
    keep = np.flatnonzero(np.repeat(real, how.chunk)).tolist()
    lengths, forced = _lengths(result, thinking), result.forced

    def judge(part: Sequence[int]) -> list[Any]:
        own = jax.tree.map(lambda x: x[np.asarray(part, int)], result)
        texts = completion_texts(own, tokenizer, cfg, whole=not thinking)
        verdicts = grade_all(texts, [answers[n // how.chunk] for n in part], cfg.data)
        chains, raw = (tokenizer.decode_batch(ids) for ids in _said(own, lengths["chain_tokens"][np.asarray(part, int)]))
        # Finished without an end of thinking: nothing was answered. Only a completion that was cut off while it thought has no text.
        texts = ["" if text is None and end == Finish.EOS else text for text, end in zip(texts, own.finish, strict=True)]
        return [(*said, v.key, v.correct, v.category) for *said, v in zip(texts, chains, raw, verdicts, strict=True)]

    judged = multihost.divide(judge, keep)
    return [
        {
            "pass": how.name,
            "uid": int(prompts.uid[n // how.chunk]),
            "sample": first + int(n % how.chunk),
            "noise_scale": how.noise_scale,
            "gold": answers[n // how.chunk],
            "text": text,
            "chain": chain,
            "raw": raw,
            "answer": key,
            "correct": correct,
            "category": category,
            "finish": Finish(int(result.finish[n])).name,
            "forced": bool(forced[n]),
            **{name: int(values[n]) for name, values in lengths.items()},
        }
        for n, (text, chain, raw, key, correct, category) in zip(keep, judged, strict=True)
    ]


def _said(result: Rollout, chain: np.ndarray) -> tuple[list[list[int]], list[list[int]]]:
    """(ids of the chain, ids of all that was emitted) by row: the heaviest token of latent steps. chain int [N]: steps of the chain."""
    rows = [row[keep].tolist() for row, keep in zip(np.asarray(result.tokens), np.asarray(result.mask), strict=True)]
    return [row[:length] for row, length in zip(rows, chain, strict=True)], rows


def _lengths(result: Rollout, thinking: bool = True) -> dict[str, Any]:
    """Steps per completion, int [N]: the chain and the answer without the end of thinking between them, and everything together.

    thinking: whether there is a chain at all; without one everything is the answer.
    """
    total = np.asarray(result.mask).sum(-1)
    chain, thought = (np.asarray(x) * thinking for x in (result.chain_len, result.thought))
    return {
        "chain_tokens": chain,
        "latent_steps": np.asarray(result.is_latent).sum(-1),
        "answer_tokens": total - chain - thought,
        "completion_tokens": total,
    }
