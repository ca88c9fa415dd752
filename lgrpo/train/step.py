"""The jitted steps: rollout, policy update, supervised update. Everything else in lgrpo is a pure function that these call.

Losses come as (sum, count); gradients of sums are added over micro-batches and divided once, by the count of the whole optimizer batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lgrpo.algos.advantages import rollout_advantages
from lgrpo.algos.diagnostics import FIRST_UPDATE, group_diagnostics, update_diagnostics
from lgrpo.algos.latent_sft import LatentLabels, SftTargets, chain_as_thoughts, noisy_labels, sft_loss, sft_targets, superposition_labels
from lgrpo.algos.policy_loss import k3_kl, policy_loss
from lgrpo.algos.stage1 import STAGES, label_count, stage1_terms
from lgrpo.config import ExperimentConfig
from lgrpo.keys import Stream, key_for
from lgrpo.latent.logprobs import chunked_logps
from lgrpo.latent.replay import completion_hidden, replay, replay_logps
from lgrpo.latent.rollout import rollout
from lgrpo.models.decoder import compute_params
from lgrpo.models.lora import merge
from lgrpo.train.optimizer import cut_frozen, learning_rate, make_optimizer, trainable
from lgrpo.types import Array, Max, Mean, Params, PromptBatch, Rollout, TrainBatch, TrainState, masked_max, masked_mean

Metrics = dict[str, Mean | Max]


def total_updates(cfg: ExperimentConfig, *, rl: bool) -> int:
    """Optimizer updates of the whole run."""
    return cfg.train.num_steps * (cfg.train.updates_per_step if rl else 1)


def init_state(params: Params, cfg: ExperimentConfig, *, rl: bool) -> TrainState:
    """Fresh optimizer state around `params`; keeps a copy of them when the KL needs a reference."""
    optimizer = make_optimizer(cfg.optim, params, total_updates(cfg, rl=rl), cfg.sft.stage)
    reference = jax.tree.map(jnp.copy, params) if rl and cfg.algo.kl_coef > 0 else None
    # One array each: a donated buffer may not appear twice.
    return TrainState(
        jnp.zeros((), jnp.int32), params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), reference
    )


rollout_step = jax.jit(rollout, static_argnames=("cfg",))


def group(rollout: Rollout, group_size: int) -> Rollout:
    """Leaves [N, ...] -> [B, G, ...], on the host or on devices."""
    return jax.tree.map(lambda x: x.reshape(-1, group_size, *x.shape[1:]), rollout)


_group = jax.jit(group, static_argnames=("group_size",))


def regroup(rollout: Rollout, group_size: int) -> Rollout:
    """group outside jit: one program on devices in place of one per leaf."""
    return (group if isinstance(rollout.mask, np.ndarray) else _group)(rollout, group_size)


@partial(jax.jit, static_argnames=("cfg",))
def make_train_batch(prompts: PromptBatch, grouped: Rollout, rewards: Array, valid: Array, *, cfg: ExperimentConfig) -> TrainBatch:
    """Advantages and masks. grouped leaves [B,G,...], rewards float32 [B,G], valid bool [B,G]."""
    advantages = rollout_advantages(grouped, rewards, valid, cfg.algo)
    counted = grouped.loss_mask if cfg.algo.invalid != "exclude" else grouped.loss_mask & valid[..., None]
    return TrainBatch(prompts, grouped, advantages, counted)


winner_step = jax.jit(group_diagnostics, static_argnames=("cfg",))


def _slices(tree: Any, count: int) -> Any:
    """[B, ...] -> [count, B / count, ...]."""
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), tree)


def _accumulate(loss_and_grad: Callable[[Any], tuple[Any, Any]], batch: Any, slices: int) -> tuple[Any, Any]:
    """Sums loss_and_grad over `slices` equal parts of the batch."""
    if slices == 1:
        return loss_and_grad(batch)
    parts = _slices(batch, slices)
    first = jax.tree.map(lambda x: x[0], parts)
    add = partial(jax.tree.map, lambda a, b: a + b, is_leaf=lambda x: isinstance(x, Mean | Max))

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return add(total, loss_and_grad(part)), None

    return jax.lax.scan(body, loss_and_grad(first), jax.tree.map(lambda x: x[1:], parts))[0]


def _apply(state: TrainState, grads: Params, cfg: ExperimentConfig, total: int) -> tuple[TrainState, Metrics]:
    """One optimizer update; a non-finite gradient leaves everything but the counters as it was."""
    optimizer = make_optimizer(cfg.optim, state.params, total, cfg.sft.stage)
    moving = trainable(state.params, cfg.optim, cfg.sft.stage)
    norm = optax.global_norm(jax.tree.map(lambda g, t: g if t else jnp.zeros((), g.dtype), grads, moving))
    finite = jnp.isfinite(norm)
    safe = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
    updates, opt_state = optimizer.update(safe, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    state = state.replace(
        params=keep(params, state.params),
        opt_state=keep(opt_state, state.opt_state),
        nonfinite=jnp.where(finite, 0, state.nonfinite + 1),
        skipped=state.skipped + jnp.where(finite, 0, 1),
    )
    return state, {"grad/norm": Max(jnp.where(finite, norm, -jnp.inf))}


def _policy_terms(
    params: Params, batch: TrainBatch, old_logps: Array, reference: Params | None, cfg: ExperimentConfig
) -> tuple[Mean, Metrics]:
    """Summed policy loss (with KL) of a slice and its diagnostics."""
    algo, mask = cfg.algo, batch.loss_mask
    gradient = batch.advantages if cfg.rollout.latent.score_gradient != "plain" else None
    settings = {"advantages": gradient, "share_prefix": cfg.train.share_prefix, "survey": cfg.train.diagnostics == "full"}
    logps, tokens = replay(params, batch.prompts, batch.rollout, cfg=cfg, **settings)
    flat = [x.reshape(-1, x.shape[-1]) for x in (logps, old_logps, batch.advantages, mask)]
    clip = {"clip_low": algo.clip_low, "clip_high": algo.clip_high, "dual_clip": algo.dual_clip, "negative_weight": algo.negative_weight}
    loss, metrics = policy_loss(*flat, **clip)
    if cfg.train.diagnostics != "off":

        def loss_of(logps: jax.Array) -> jax.Array:
            return policy_loss(logps.reshape(flat[0].shape), *flat[1:], **clip)[0].total

        metrics |= update_diagnostics(batch.rollout, batch.advantages, mask, logps, tokens, loss_of, cfg.rollout)
    metrics["policy/replay_gap"] = masked_max(jnp.abs(logps - batch.rollout.logps), mask)
    metrics["policy/logp"] = masked_mean(logps, mask)
    metrics["policy/loss"] = loss
    if reference is not None:
        theirs = jax.lax.stop_gradient(replay_logps(reference, batch.prompts, batch.rollout, cfg=cfg, share_prefix=cfg.train.share_prefix))
        # The score gradient is a device of the policy loss; the KL keeps the plain one.
        plain = (
            logps if gradient is None else replay_logps(params, batch.prompts, batch.rollout, cfg=cfg, share_prefix=cfg.train.share_prefix)
        )
        kl = k3_kl(plain, theirs, mask)
        metrics["policy/kl_k3"] = kl
        loss = Mean(loss.total + algo.kl_coef * kl.total, loss.count)
    return loss, metrics


def _micro_count(size: int, microbatch: int) -> int:
    return size // microbatch if microbatch else 1


def _old_logps(params: Params, batch: TrainBatch, cfg: ExperimentConfig, slices: int) -> jax.Array:
    """Behaviour log-probs [B,G,T], recorded by the sampler or recomputed slice by slice."""
    if cfg.algo.old_logps == "rollout":
        return batch.rollout.logps

    def one(part: TrainBatch) -> jax.Array:
        return replay_logps(params, part.prompts, part.rollout, cfg=cfg, share_prefix=cfg.train.share_prefix)

    return jax.lax.map(one, _slices(batch, slices)).reshape(batch.advantages.shape)


def _update(state: TrainState, batch: tuple[TrainBatch, Array], cfg: ExperimentConfig, total: int) -> tuple[TrainState, Metrics]:
    """One optimizer update on [B / updates, ...]."""
    slices = _micro_count(batch[1].shape[0], cfg.train.microbatch)
    per_slice = cfg.algo.loss_mean == "microbatch"

    def objective(params: Params, part: tuple[TrainBatch, Array]) -> tuple[jax.Array, tuple[Mean, Metrics]]:
        loss, metrics = _policy_terms(cut_frozen(params, cfg.optim, cfg.sft.stage), *part, state.reference, cfg)
        if per_slice:
            loss = Mean(loss.value(), jnp.ones(()))
        return loss.total, (loss, metrics)

    def loss_and_grad(part: tuple[TrainBatch, Array]) -> tuple[Any, Any]:
        (_, aux), grads = jax.value_and_grad(objective, has_aux=True)(state.params, part)
        return aux, grads

    (loss, metrics), grads = _accumulate(loss_and_grad, batch, slices)
    grads = jax.tree.map(lambda g: g / jnp.maximum(loss.count, 1).astype(g.dtype), grads)
    state, more = _apply(state, grads, cfg, total)
    return state, metrics | more


@partial(jax.jit, static_argnames=("cfg",), donate_argnames=("state",))
def train_step(state: TrainState, batch: TrainBatch, *, cfg: ExperimentConfig) -> tuple[TrainState, dict[str, jax.Array]]:
    """All updates of one RL step. batch leaves [B, ...] are cut into cfg.train.updates_per_step parts, each into micro-batches.

    Returns the new state and scalar metrics (means over the updates, maxima where the metric is one). `policy/replay_gap` is that of the first
    update, before any weight has moved.
    """
    updates, total = cfg.train.updates_per_step, total_updates(cfg, rl=True)
    slices = _micro_count(batch.advantages.shape[0], cfg.train.microbatch)
    parts = _slices((batch, _old_logps(state.params, batch, cfg, slices)), updates)
    state, metrics = jax.lax.scan(lambda s, part: _update(s, part, cfg, total), state, parts)
    gap = metrics["policy/replay_gap"].largest[0]
    metrics |= {name: jax.tree.map(lambda x: x[:1], metrics[name]) for name in FIRST_UPDATE if name in metrics}
    out = {name: _reduce(m) for name, m in metrics.items()} | {"policy/replay_gap": jnp.where(gap > -jnp.inf, gap, 0.0)}
    state = state.replace(step=state.step + 1)
    rate = learning_rate(cfg.optim, total)(jnp.maximum(state.step * updates - state.skipped - 1, 0))
    return state, out | {"optim/lr": jnp.asarray(rate), "grad/skipped": state.skipped, "grad/nonfinite": state.nonfinite}


def _reduce(metric: Mean | Max) -> jax.Array:
    """Combines the leading update axis."""
    if isinstance(metric, Max):
        return Max(metric.largest.max()).value()
    return type(metric)(metric.total.sum(), metric.count.sum()).value()


def _labels(batch: dict[str, Array], cfg: ExperimentConfig) -> LatentLabels:
    """Clean latent labels of a supervised batch: closed-form, or those that the data stream read from the label set."""
    c = cfg.sft
    if c.labels == "superposition":
        spec = {"k": cfg.rollout.latent.k, "compression": c.compression, "kind": c.superposition}
        return superposition_labels(batch["chain_tokens"], batch["chain_mask"], **spec)
    return LatentLabels(jnp.asarray(batch["label_ids"]), jnp.asarray(batch["label_probs"]), jnp.asarray(batch["label_mask"]))


def _sft_batch(batch: dict[str, Array], keys: Array | None, cfg: ExperimentConfig) -> tuple[PromptBatch, SftTargets]:
    """Inputs and targets of a supervised batch as made by data.pipeline.sft_stream, leaves [N, ...]; keys [N] draw the label noise (None: none)."""
    c, latent = cfg.sft, cfg.sft.stage == "latent"
    thoughts = _labels(batch, cfg) if latent else chain_as_thoughts(batch["chain_tokens"], batch["chain_mask"])
    if latent and c.label_noise > 0 and keys is not None:
        noise = {"scale": c.label_noise, "clamp": c.label_clamp, "think_end_id": cfg.data.think_end_id, "tau": cfg.rollout.latent.tau}
        thoughts = noisy_labels(thoughts, keys, redraws=c.label_redraws, **noise)
    targets = sft_targets(thoughts, batch["answer_tokens"], batch["answer_mask"], think_end_id=cfg.data.think_end_id, latent=latent)
    return PromptBatch(batch["prompt_tokens"], batch["prompt_mask"], batch["uid"]), targets


def sft_weights(params: Params, cfg: ExperimentConfig, key: Array | None = None) -> Params:
    """What the forward pass of supervised training runs on: `params`, adapters merged. key: draws their dropout (None: none)."""
    lora = cfg.sft.lora
    if not lora.rank:
        return params
    return merge(params["base"], params["adapters"], lora.alpha / lora.rank, dropout=lora.dropout if key is not None else 0.0, key=key)


def _sft_terms(weights: Params, inputs: Any, cfg: ExperimentConfig) -> tuple[Mean, Mean]:
    """(cross-entropy, KL) of a slice, as sums and counts. inputs: (prompts, targets), or the batch itself in stage 1, which has no KL."""
    if cfg.sft.stage in STAGES:
        return stage1_terms(weights, inputs, cfg), Mean(jnp.zeros(()), jnp.zeros(()))
    prompts, targets = inputs
    params = compute_params(weights, cfg.model)
    hidden = completion_hidden(params, cfg, prompts, targets.ids[:, None], targets.weights[:, None])
    logps = chunked_logps(params, hidden, targets.ids, jnp.ones(targets.mask.shape, jnp.float32), chunk=cfg.train.logprob_chunk).chosen
    return sft_loss(targets, logps, kl_weight=cfg.sft.kl_weight)


def _sft_inputs(batch: dict[str, Array], keys: Array | None, cfg: ExperimentConfig) -> tuple[Any, jax.Array, jax.Array]:
    """What _sft_terms takes, and the numbers of token and latent steps in the loss of the whole batch."""
    if cfg.sft.stage in STAGES:
        return batch, label_count(batch, cfg), jnp.zeros((), jnp.int32)
    prompts, targets = _sft_batch(batch, keys, cfg)
    latents = (targets.mask & targets.is_latent).sum()
    return (prompts, targets), targets.mask.sum() - latents, latents


@partial(jax.jit, static_argnames=("cfg",))
def sft_losses(params: Params, batch: dict[str, Array], *, cfg: ExperimentConfig) -> tuple[Mean, Mean]:
    """(cross-entropy, KL times kl_weight) of a batch on clean labels and without dropout: for validation. params: as in the state."""
    return _sft_terms(sft_weights(params, cfg), _sft_inputs(batch, None, cfg)[0], cfg)


@partial(jax.jit, static_argnames=("cfg",), donate_argnames=("state",))
def sft_step(state: TrainState, batch: dict[str, Array], *, cfg: ExperimentConfig) -> tuple[TrainState, dict[str, jax.Array]]:
    """One supervised update: token mean of the cross-entropy plus, in the latent stage, the mean KL over latent steps. Noise is redrawn every step."""
    total = total_updates(cfg, rl=False)
    key = key_for(cfg.seed, state.step, Stream.LABEL_NOISE)
    dropout = key_for(cfg.seed, state.step, Stream.DROPOUT) if cfg.sft.lora.rank and cfg.sft.lora.dropout else None
    inputs, tokens, latents = _sft_inputs(batch, jax.vmap(lambda u: jax.random.fold_in(key, u))(jnp.asarray(batch["uid"])), cfg)

    # The two terms have counts of their own. These depend on the batch alone, so each micro-batch divides by those of the whole batch.
    def objective(params: Params, part: Any) -> tuple[jax.Array, tuple[Mean, Mean]]:
        params = cut_frozen(params, cfg.optim, cfg.sft.stage)
        ce, kl = _sft_terms(sft_weights(params, cfg, dropout), part, cfg)
        return ce.total / jnp.maximum(tokens, 1) + kl.total / jnp.maximum(latents, 1), (ce, kl)

    def loss_and_grad(part: Any) -> tuple[Any, Any]:
        (_, terms), grads = jax.value_and_grad(objective, has_aux=True)(state.params, part)
        return list(terms), grads

    (ce, kl), grads = _accumulate(loss_and_grad, inputs, _micro_count(batch["uid"].shape[0], cfg.train.microbatch))
    state, metrics = _apply(state, grads, cfg, total)
    state = state.replace(step=state.step + 1)
    rate = learning_rate(cfg.optim, total)(jnp.maximum(state.step - state.skipped - 1, 0))
    out = {"sft/ce": ce.value(), "sft/kl": kl.value(), "sft/loss": ce.value() + kl.value(), "grad/norm": metrics["grad/norm"].value()}
    out["sft/tokens"] = processed_tokens(batch, cfg).astype(jnp.float32)
    return state, out | {"optim/lr": jnp.asarray(rate), "grad/skipped": state.skipped, "grad/nonfinite": state.nonfinite}


def processed_tokens(batch: dict[str, Array], cfg: ExperimentConfig) -> jax.Array:
    """Positions that the update's forward passes run over, prompts included and padding not: the measure of equal training."""
    c = cfg.sft.compression
    prompt, chain, answer = (batch[f"{name}_mask"].sum() for name in ("prompt", "chain", "answer"))
    rows = batch["uid"].shape[0]
    latents = (-(-batch["chain_mask"].sum(-1) // c)).sum()
    if cfg.sft.stage == "explicit":
        return prompt + chain + answer + rows
    if cfg.sft.stage == "latent":
        return prompt + latents + answer + rows
    first = jnp.minimum(batch["chain_mask"].sum(-1), c).sum()
    return (prompt + chain + latents + rows) + (prompt + latents + chain - first + answer + rows)
