"""Supervised update: explicit chains, Latent-SFT and its stage 1."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lgrpo.algos.latent_sft import LatentLabels, SftTargets, chain_as_thoughts, noisy_labels, sft_loss, sft_targets, superposition_labels
from lgrpo.algos.packed import PackedRows, pack_rows, packed_hidden
from lgrpo.algos.stage1 import STAGES, label_count, stage1_terms
from lgrpo.config import ExperimentConfig
from lgrpo.config.reads import Wants
from lgrpo.keys import Stream, key_for
from lgrpo.latent.logprobs import chunked_logps
from lgrpo.latent.replay import completion_hidden
from lgrpo.models.decoder import compute_params
from lgrpo.train.optimizer import join, split
from lgrpo.train.steps.program import Program
from lgrpo.train.steps.update import (
    accumulate,
    apply_update,
    attached_weights,
    concluded,
    merged_weights,
    micro_count,
    scheduled_updates,
    slices_of,
    summed,
)
from lgrpo.types import Array, Mean, Params, PromptBatch, TrainState


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


def sft_weights(params: Params, cfg: ExperimentConfig) -> Params:
    """Ordinary weights, adapters merged."""
    return merged_weights(params, cfg.sft.lora)


def _sft_terms(weights: Params, inputs: Any, cfg: ExperimentConfig) -> tuple[Mean, Mean]:
    """(cross-entropy, KL) of a slice, as sums and counts. inputs: PackedRows; (prompts, targets); or the batch itself in stage 1, which has no KL."""
    if cfg.sft.stage in STAGES:
        return stage1_terms(weights, inputs, cfg), Mean(jnp.zeros(()), jnp.zeros(()))
    params = compute_params(weights, cfg.model)
    if isinstance(inputs, PackedRows):
        targets, hidden = inputs.targets, packed_hidden(params, cfg.model, inputs)
    else:
        prompts, targets = inputs
        hidden = completion_hidden(params, cfg, prompts, targets.ids[:, None], targets.weights[:, None])
    logps = chunked_logps(params, hidden, targets.ids, jnp.ones(targets.mask.shape, jnp.float32), chunk=cfg.train.logprob_chunk).chosen
    return sft_loss(targets, logps, kl_weight=cfg.sft.kl_weight)


class _Inputs(NamedTuple):
    parts: Any  # leaves [slices, ...]; a part is what _sft_terms takes
    tokens: jax.Array  # int32 []; token steps in the loss of the whole batch
    latents: jax.Array  # int32 []; latent steps


def _sft_inputs(batch: dict[str, Array], keys: Array | None, cfg: ExperimentConfig, slices: int) -> _Inputs:
    """slices: of a padded batch; packed rows bring theirs along."""
    if cfg.sft.stage in STAGES:
        return _Inputs(slices_of(batch, slices), label_count(batch, cfg), jnp.zeros((), jnp.int32))
    prompts, targets = _sft_batch(batch, keys, cfg)
    latents = (targets.mask & targets.is_latent).sum()
    if "pack_inputs" in batch:
        parts = jax.vmap(partial(pack_rows, prompts, targets))(*_by_slice(batch["pack_inputs"], batch["pack_steps"]))
    else:
        parts = slices_of((prompts, targets), slices)
    return _Inputs(parts, targets.mask.sum() - latents, latents)


def _by_slice(*rows: Array) -> tuple[jax.Array, ...]:
    """[R,S,...] as data.packing makes them -> [S,R,...]: rows stay on their devices."""
    return tuple(jnp.swapaxes(x, 0, 1) for x in rows)


def _sft_losses(params: Params, batch: dict[str, Array], *, cfg: ExperimentConfig) -> tuple[Mean, Mean]:
    """(cross-entropy, KL times kl_weight) of a batch on clean labels and without dropout: for validation. params: as in the state."""
    weights = attached_weights(params, cfg.sft.lora)
    return summed(lambda part: _sft_terms(weights, part, cfg), _sft_inputs(batch, None, cfg, 1).parts)


def _sft_step(state: TrainState, batch: dict[str, Array], *, cfg: ExperimentConfig) -> tuple[TrainState, dict[str, jax.Array]]:
    """One supervised update: token mean of the cross-entropy plus, in the latent stage, the mean KL over latent steps. Noise is redrawn every step."""
    total = cfg.total_updates
    key = key_for(cfg.seed, state.step, Stream.LABEL_NOISE)
    dropout = key_for(cfg.seed, state.step, Stream.DROPOUT) if cfg.sft.lora.rank and cfg.sft.lora.dropout else None
    keys = jax.vmap(lambda u: jax.random.fold_in(key, u))(jnp.asarray(batch["uid"]))
    inputs = _sft_inputs(batch, keys, cfg, micro_count(batch["uid"].shape[0], cfg.train.microbatch))

    moving, frozen = split(state.params, cfg.optim, cfg.sft.stage)

    # The two terms have counts of their own. These depend on the batch alone, so each micro-batch divides by those of the whole batch.
    def objective(params: Params, part: Any) -> tuple[jax.Array, tuple[Mean, Mean]]:
        weights = attached_weights(join(params, frozen), cfg.sft.lora, dropout)
        ce, kl = _sft_terms(weights, part, cfg)
        return ce.total / jnp.maximum(inputs.tokens, 1) + kl.total / jnp.maximum(inputs.latents, 1), (ce, kl)

    (ce, kl), grads = accumulate(objective, moving, inputs.parts)
    state, metrics = apply_update(state, grads, cfg, total)
    state, counters = concluded(state, cfg, total)
    out = {"sft/ce": ce.value(), "sft/kl": kl.value(), "sft/loss": ce.value() + kl.value(), "grad/norm": metrics["grad/norm"].value()}
    out["sft/tokens"] = processed_tokens(batch, cfg).astype(jnp.float32)
    return state, out | counters


_UNREAD = ("heldout", "patience", "label_path", "batch_size", "packing", "max_chain", "max_answer")
_INPUTS = ("model", "sft", "data.think_end_id", "rollout.latent.k", "rollout.latent.tau", "train.logprob_chunk")
_WANTS = {"arrays": ("sft.kl_weight",), "unread": tuple(f"sft.{name}" for name in _UNREAD)}
_LEARNING = {"arrays": ("sft.kl_weight", "optim.lr", "optim.clip_norm", "seed"), "unread": _WANTS["unread"]}
sft_losses = Program(_sft_losses, Wants(_INPUTS, **_WANTS))
sft_step = Program(
    _sft_step,
    Wants((*_INPUTS, "optim", "train.microbatch"), **_LEARNING),
    facts=lambda cfg: {"total_updates": scheduled_updates(cfg, rl=False)},
    donate=("state",),
)


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
