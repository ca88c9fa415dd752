"""What a model thought about single problems, step by step: the record of a rollout and, beside it, what the model said without noise."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lgrpo.algos import advantages as rules
from lgrpo.config import AlgoConfig, ExperimentConfig
from lgrpo.data.prompts import TextTokenizer
from lgrpo.latent.logprobs import ban
from lgrpo.latent.replay import completion_hidden
from lgrpo.latent.rollout import rollout
from lgrpo.models.decoder import compute_params, logits_of
from lgrpo.rewards.score import completion_texts, score
from lgrpo.types import Array, Finish, Params, PromptBatch, Rollout

_ATOM = 1e-3  # a draw this close to the clamp sits on it


class Inspected(NamedTuple):
    """The model's own distribution (temperature 1, no noise) at every recorded step."""

    logps: Array  # float32 [G, T, K]; of the recorded tokens
    ranks: Array  # int32 [G, T, K]; 1 is the most likely token, ties as lax.top_k resolves them
    exit_prob: Array  # float32 [G, T]; of the end of thinking
    entropy: Array  # float32 [G, T]; nats


@dataclasses.dataclass(frozen=True)
class Component:
    """One token of a mixture. margin = score minus log-prob (None where the law keeps no scores of its components); draw = the draw
    behind it, before shift and scale (None without noise)."""

    token: str
    id: int
    weight: float
    logp: float
    rank: int
    margin: float | None
    draw: float | None
    clamped: bool  # the draw sits at an end of the clamp


@dataclasses.dataclass(frozen=True)
class Step:
    """One position of a completion. kind: latent, exit (the end of thinking), thought (a token of an explicit chain) or answer."""

    index: int
    kind: str
    components: tuple[Component, ...]  # the K of a mixture, heaviest first; one for a token
    logp: float  # what the sampler recorded for the step, nats
    exit_prob: float
    entropy: float
    advantage: float
    in_loss: bool


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion of a group."""

    index: int
    steps: tuple[Step, ...]
    answer: str | None  # text after the end of thinking; None when thinking never ended
    reward: float
    correct: bool
    valid: bool
    finish: str
    advantage: float  # of its positions, before first-token selection
    winner: bool
    chain: str = ""  # text of an explicit chain

    @property
    def latents(self) -> list[Step]:
        return [step for step in self.steps if step.kind == "latent"]


@dataclasses.dataclass(frozen=True)
class Trace:
    """One problem under one checkpoint."""

    uid: int
    prompt: str
    gold: str
    samples: tuple[Sample, ...]

    @property
    def winner(self) -> Sample | None:
        return next((s for s in self.samples if s.winner), None)


@partial(jax.jit, static_argnames=("cfg",))
def inspect(params: Params, prompts: PromptBatch, record: Rollout, *, cfg: ExperimentConfig) -> Inspected:
    """Replays the completions of one problem. prompts [1, P], record leaves [G, ...]. Holds the logits [G, T, V]: a group, not a batch."""
    weights = compute_params(params, cfg.model)
    ids = jnp.where(record.mask[..., None], record.ids, 0)
    mixture = jnp.where(record.mask[..., None], record.weights, 0.0)
    scores = jnp.where(record.mask[..., None], record.scores, 0.0)
    logits = logits_of(weights, completion_hidden(weights, cfg, prompts, ids[None], mixture[None], scores[None]))
    if cfg.rollout.mode == "latent":
        thinking = jnp.arange(ids.shape[1]) <= record.chain_len[:, None]
        early = jnp.arange(ids.shape[1]) < cfg.rollout.latent.min_latent
        logits = ban(logits, cfg.data.think_end_id, thinking & early)
    logps = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logps, ids, axis=-1)
    vocab = jnp.arange(logps.shape[-1])

    def rank(k: int) -> jax.Array:
        own, at = chosen[..., k, None], ids[..., k, None]
        return 1 + ((logps > own) | ((logps == own) & (vocab < at))).sum(-1)

    ranks = jnp.stack([rank(k) for k in range(ids.shape[-1])], axis=-1)
    probs = jnp.exp(logps)
    entropy = -jnp.sum(jnp.where(probs > 0, probs * logps, 0.0), axis=-1)
    return Inspected(chosen, ranks, probs[..., cfg.data.think_end_id], entropy)


def winners(record: Rollout, rewards: Array, valid: Array, cfg: AlgoConfig) -> np.ndarray:
    """The sample that first-token selection keeps, bool [B, G]; none in a group without a correct sample. record leaves [B, G, ...]."""
    return np.asarray(rules.winners(rules.sample_advantages(rewards, valid, cfg), rules.winner_scores(record, valid, cfg)))


_rollout = jax.jit(rollout, static_argnames=("cfg",))


def trace(
    params: Params, prompts: PromptBatch, golds: list[str], key: jax.Array, *, cfg: ExperimentConfig, tokenizer: TextTokenizer
) -> tuple[list[Trace], Rollout]:
    """Rolls out every problem with `key` and explains what was sampled. prompts [B, P], golds B answers. cfg must be resolved.

    The same key gives two checkpoints the same noise. Returns a Trace for each problem and the rollout [N, ...] that they explain.
    """
    group = cfg.rollout.group_size
    record = jax.device_get(_rollout(compute_params(params, cfg.model), prompts, key, cfg=cfg))
    scored = score(record, golds, tokenizer, cfg)
    texts = completion_texts(record, tokenizer, cfg)
    grouped = jax.tree.map(lambda x: x.reshape(len(golds), group, *x.shape[1:]), record)
    rewards, valid = scored.rewards.reshape(-1, group), scored.valid.reshape(-1, group)
    advantages = np.asarray(rules.rollout_advantages(grouped, rewards, valid, cfg.algo))
    plain = np.asarray(rules.rollout_advantages(grouped, rewards, valid, dataclasses.replace(cfg.algo, first_token=False)))
    won = winners(grouped, rewards, valid, cfg.algo)
    out = []
    for b, gold in enumerate(golds):
        one = jax.tree.map(lambda x, b=b: x[b], grouped)
        alone = jax.tree.map(lambda x, b=b: np.asarray(x)[b : b + 1], prompts)
        seen = jax.device_get(inspect(params, alone, one, cfg=cfg))
        samples = []
        for g in range(group):
            steps = _steps(jax.tree.map(lambda x, g=g: x[g], one), Inspected(*(x[g] for x in seen)), advantages[b, g], cfg, tokenizer)
            verdict = {
                "reward": float(rewards[b, g]),
                "correct": bool(scored.correct[b * group + g]),
                "valid": bool(valid[b, g]),
                "finish": Finish(int(one.finish[g])).name,
            }
            largest = plain[b, g][np.abs(plain[b, g]).argmax()].item()
            thought = [step.components[0].id for step in steps if step.kind == "thought"]
            verdict["chain"] = tokenizer.decode(thought)
            samples.append(Sample(g, steps, texts[b * group + g], advantage=largest, winner=bool(won[b, g]), **verdict))
        tokens = np.asarray(alone.tokens)[0][np.asarray(alone.mask)[0]]
        out.append(Trace(int(alone.uid[0]), tokenizer.decode(tokens.tolist()), gold, tuple(samples)))
    return out, record


def _steps(record: Rollout, seen: Inspected, advantages: np.ndarray, cfg: ExperimentConfig, tokenizer: TextTokenizer) -> tuple[Step, ...]:
    """Steps of one completion. record and seen leaves [T, ...]."""
    c = cfg.rollout.latent
    steps = []
    for t in np.flatnonzero(record.mask).tolist():
        latent = bool(record.is_latent[t])
        after = t - int(record.chain_len)
        kind = "latent" if latent else "thought" if after < 0 else "exit" if after == 0 and record.thought else "answer"
        components = []
        for k in range(c.k if latent else 1):
            margin = None if latent and not c.law.scored else float(record.scores[t, k] - seen.logps[t, k]) if latent else 0.0
            draw = c.law.noise_of(c, margin) if latent and c.law.scored and c.noise_scale > 0 else None
            ends = c.law.atoms(c) if draw is not None else None
            clamped = ends is not None and not ends[0] + _ATOM * c.noise_scale < margin < ends[1] - _ATOM * c.noise_scale
            token = int(record.ids[t, k])
            numbers = {"weight": float(record.weights[t, k]), "logp": float(seen.logps[t, k]), "rank": int(seen.ranks[t, k])}
            components.append(
                Component(tokenizer.token_of(token) or f"#{token}", token, margin=margin, draw=draw, clamped=clamped, **numbers)
            )
        own = {"logp": float(record.logps[t]), "exit_prob": float(seen.exit_prob[t]), "entropy": float(seen.entropy[t])}
        steps.append(Step(t, kind, tuple(components), advantage=float(advantages[t]), in_loss=bool(record.loss_mask[t]), **own))
    return tuple(steps)
