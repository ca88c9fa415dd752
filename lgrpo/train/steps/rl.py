"""Rollout and policy update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lgrpo.algos.advantages import rollout_advantages
from lgrpo.algos.diagnostics import FIRST_UPDATE, group_diagnostics, update_diagnostics
from lgrpo.algos.policy_loss import k3_kl, policy_loss, sequence_weights
from lgrpo.config import ExperimentConfig
from lgrpo.config.reads import Wants
from lgrpo.latent.replay import replay, replay_logps, without_broken
from lgrpo.latent.rollout import rollout
from lgrpo.train.optimizer import join, split
from lgrpo.train.steps.program import Program
from lgrpo.train.steps.update import (
    Metrics,
    accumulate,
    apply_update,
    attached_weights,
    concluded,
    micro_count,
    scheduled_updates,
    slices_of,
)
from lgrpo.types import Array, Max, Mean, Params, PromptBatch, Rollout, TrainBatch, TrainState, masked_max, masked_mean

SAMPLING = Wants(("model", "rollout", "data.think_end_id", "data.eos_id", "data.more_eos_ids"))
_COEFFICIENTS = tuple(f"algo.{name}" for name in ("clip_low", "clip_high", "dual_clip", "negative_weight", "kl_coef"))
_OPTIM = ("optim.lr", "optim.clip_norm")

rollout_step = Program(rollout, SAMPLING)


def group(rollout: Rollout, group_size: int) -> Rollout:
    """Leaves [N, ...] -> [B, G, ...], on the host or on devices."""
    return jax.tree.map(lambda x: x.reshape(-1, group_size, *x.shape[1:]), rollout)


_group = jax.jit(group, static_argnames=("group_size",))


def regroup(rollout: Rollout, group_size: int) -> Rollout:
    """group outside jit: one program on devices in place of one per leaf."""
    return (group if isinstance(rollout.mask, np.ndarray) else _group)(rollout, group_size)


def _make_train_batch(prompts: PromptBatch, grouped: Rollout, rewards: Array, valid: Array, *, cfg: ExperimentConfig) -> TrainBatch:
    """Advantages and masks. grouped leaves [B,G,...], rewards float32 [B,G], valid bool [B,G]."""
    grouped, whole = without_broken(grouped, logps=True)
    valid = valid & whole
    advantages = rollout_advantages(grouped, rewards, valid, cfg.algo)
    counted = grouped.loss_mask if cfg.algo.invalid != "exclude" else grouped.loss_mask & valid[..., None]
    return TrainBatch(prompts, grouped, advantages, counted)


# What makes the advantages, and what the update makes of them: a grid over the one compiles the other once.
_OF_ADVANTAGES = tuple(
    f"algo.{name}"
    for name in ("invalid", "first_token", "advantage", "baseline", "scale", "winner_score", "winner_must_be_valid", "lone_survivor")
)
_OF_UPDATES = tuple(f"algo.{name}" for name in ("ratio", "loss_mean", "old_logps", "lora"))
_ADVANTAGES = Wants(("algo",), unread=(*_COEFFICIENTS, *_OF_UPDATES, "algo.dynamic"))
make_train_batch = Program(_make_train_batch, _ADVANTAGES)


def _winners(grouped: Rollout, rewards: Array, valid: Array, *, cfg: ExperimentConfig) -> Metrics:
    grouped, whole = without_broken(grouped, logps=True)
    return group_diagnostics(grouped, rewards, valid & whole, cfg=cfg.algo)


winner_step = Program(_winners, _ADVANTAGES)


def _policy_terms(
    params: Params, batch: TrainBatch, old_logps: Array, reference: Params | None, cfg: ExperimentConfig
) -> tuple[Mean, Metrics]:
    """Summed policy loss (with KL) of a slice and its diagnostics."""
    algo, mask = cfg.algo, batch.loss_mask
    gradient = batch.advantages if cfg.rollout.mode == "latent" and cfg.rollout.latent.law.reads_advantages else None
    settings = {"advantages": gradient, "share_prefix": cfg.train.share_prefix, "survey": cfg.train.diagnostics == "full"}
    logps, plain, tokens = replay(params, batch.prompts, batch.rollout, cfg=cfg, **settings)
    flat = [x.reshape(-1, x.shape[-1]) for x in (logps, old_logps, batch.advantages, mask)]
    weights = sequence_weights(mask) if algo.loss_mean == "sequence" else None
    clip = {"clip_low": algo.clip_low, "clip_high": algo.clip_high, "dual_clip": algo.dual_clip, "negative_weight": algo.negative_weight}
    clip |= {"ratio_of": algo.ratio, "weights": None if weights is None else weights.reshape(flat[0].shape)}
    loss, metrics = policy_loss(*flat, **clip)
    if cfg.train.diagnostics != "off":

        def loss_of(logps: jax.Array) -> jax.Array:
            return policy_loss(logps.reshape(flat[0].shape), *flat[1:], **clip)[0].total

        table = params["embed"].astype(cfg.model.dtype)
        metrics |= update_diagnostics(batch.rollout, batch.advantages, mask, logps, tokens, table, loss_of, cfg.rollout)
    metrics["policy/replay_gap"] = masked_max(jnp.abs(logps - batch.rollout.logps), mask)
    metrics["policy/logp"] = masked_mean(logps, mask)
    metrics["policy/loss"] = loss
    if reference is not None:
        theirs = jax.lax.stop_gradient(replay_logps(reference, batch.prompts, batch.rollout, cfg=cfg, share_prefix=cfg.train.share_prefix))
        # The score gradient is a device of the policy loss; the KL keeps the plain one.
        kl = k3_kl(plain, theirs, mask, weights)
        metrics["policy/kl_k3"] = kl
        loss = Mean(loss.total + algo.kl_coef * kl.total, loss.count)
    return loss, metrics


def _old_logps(params: Params, batch: TrainBatch, cfg: ExperimentConfig, slices: int) -> jax.Array:
    """Behaviour log-probs [B,G,T], recorded by the sampler or recomputed slice by slice."""
    if cfg.algo.old_logps == "rollout":
        return batch.rollout.logps

    def one(part: TrainBatch) -> jax.Array:
        return replay_logps(params, part.prompts, part.rollout, cfg=cfg, share_prefix=cfg.train.share_prefix)

    return jax.lax.map(one, slices_of(batch, slices)).reshape(batch.advantages.shape)


def _update(state: TrainState, batch: tuple[TrainBatch, Array], cfg: ExperimentConfig, total: int) -> tuple[TrainState, Metrics]:
    """One optimizer update on [B / updates, ...]."""
    slices = micro_count(batch[1].shape[0], cfg.train.microbatch)
    per_slice, lora = cfg.algo.loss_mean == "microbatch", cfg.algo.lora
    moving, frozen = split(state.params, cfg.optim)
    # Without its adapters a policy is its frozen start.
    reference = state.params["base"] if lora.rank and cfg.keeps_start else state.reference

    def objective(params: Params, part: tuple[TrainBatch, Array]) -> tuple[jax.Array, tuple[Mean, Metrics]]:
        loss, metrics = _policy_terms(attached_weights(join(params, frozen), lora), *part, reference, cfg)
        if per_slice:
            loss = Mean(loss.value(), (loss.count > 0).astype(jnp.float32))  # an empty slice has no mean
        return loss.total, (loss, metrics)

    (loss, metrics), grads = accumulate(objective, moving, slices_of(batch, slices))
    state, more = apply_update(state, grads, cfg, total, count=loss.count, empty=~batch[0].loss_mask.any())
    return state, metrics | more


def _train_step(state: TrainState, batch: TrainBatch, *, cfg: ExperimentConfig) -> tuple[TrainState, dict[str, jax.Array]]:
    """All updates of one RL step. batch leaves [B, ...] are cut into cfg.train.updates_per_step parts, each into micro-batches.

    Returns the new state and scalar metrics (means over the updates, maxima where the metric is one). `policy/replay_gap` is that of the first
    update, before any weight has moved.
    """
    updates, total = cfg.train.updates_per_step, cfg.total_updates
    slices = micro_count(batch.advantages.shape[0], cfg.train.microbatch)
    old_logps = _old_logps(attached_weights(state.params, cfg.algo.lora), batch, cfg, slices)
    parts = slices_of((batch, old_logps), updates)
    state, metrics = jax.lax.scan(lambda s, part: _update(s, part, cfg, total), state, parts)
    gap = metrics["policy/replay_gap"].largest[0]
    metrics |= {name: jax.tree.map(lambda x: x[:1], metrics[name]) for name in FIRST_UPDATE if name in metrics}
    out = {name: _reduce(m) for name, m in metrics.items()} | {"policy/replay_gap": jnp.where(gap > -jnp.inf, gap, 0.0)}
    state, counters = concluded(state, cfg, total)
    return state, out | counters


_LEARNING = Wants(
    (
        *("model", "rollout", "algo", "optim", "data.think_end_id", "sft.stage"),
        *(f"train.{name}" for name in ("updates_per_step", "microbatch", "logprob_chunk", "share_prefix", "diagnostics")),
    ),
    arrays=(*_COEFFICIENTS, *_OPTIM),
    unread=(*_OF_ADVANTAGES, "algo.dynamic"),
)
train_step = Program(
    _train_step,
    _LEARNING,
    facts=lambda cfg: {"total_updates": scheduled_updates(cfg, rl=True), "keeps_start": cfg.algo.kl_coef > 0},
    donate=("state",),
)


def _reduce(metric: Mean | Max) -> jax.Array:
    """Combines the leading update axis."""
    if isinstance(metric, Max):
        return Max(metric.largest.max()).value()
    return type(metric)(metric.total.sum(), metric.count.sum()).value()
