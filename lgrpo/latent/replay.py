"""Teacher-forced evaluation of recorded completions: the numbers the sampler produced, differentiable. The learner and supervised training share it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lgrpo.config import ExperimentConfig
from lgrpo.latent.law import Step
from lgrpo.latent.logprobs import TokenLogps, chunked_logps, mixed_inputs, step_temperature
from lgrpo.latent.mixture import embed_mixture
from lgrpo.models.decoder import compute_params, forward_group
from lgrpo.types import Finish, Params, PromptBatch, Rollout


def completion_hidden(
    params: Params,
    cfg: ExperimentConfig,
    prompts: PromptBatch,
    ids: jax.Array,
    weights: jax.Array,
    scores: jax.Array | None = None,
    *,
    share_prefix: bool = True,
) -> jax.Array:
    """Hidden states that predict each completion step. prompts [B,P], ids, weights and scores [B,G,T,K] -> [B*G, T, D].

    scores: what the law recorded beside the mixtures; None where mixtures are fed without noise (labels).
    share_prefix=False repeats the prompt for every sample: the same numbers, more work (for checks and benchmarks).
    """
    batch, group, length, _ = ids.shape
    tokens, mask = prompts.tokens, prompts.mask
    if not share_prefix:
        tokens, mask = jnp.repeat(tokens, group, axis=0), jnp.repeat(mask, group, axis=0)
    shape = (batch, group) if share_prefix else (batch * group, 1)

    def inputs(x: jax.Array) -> jax.Array:
        return x.reshape(*shape, length, -1)[:, :, :-1]  # the last step's input predicts nothing

    if scores is None:
        embeds = embed_mixture(params["embed"], inputs(ids), inputs(weights))
    else:
        noise_scale = jnp.full((*shape, length - 1), cfg.rollout.latent.noise_scale, jnp.float32)
        embeds = mixed_inputs(params["embed"], Step(inputs(ids), inputs(scores), inputs(weights)), noise_scale, cfg.rollout)
    last, hidden = forward_group(params, cfg.model, tokens, mask, embeds)
    first = jnp.broadcast_to(last[:, None, None], (*hidden.shape[:2], 1, hidden.shape[-1]))
    return jnp.concatenate([first, hidden], axis=2).reshape(batch * group, length, -1)


def without_broken(rollout: Rollout, *, logps: bool = False) -> tuple[Rollout, jax.Array]:
    """rollout without what rows hold that broke, or that recorded a number which is not finite; and bool [B,G]: the rows that are left.

    A masked weight of 0 is not enough: 0 * NaN is NaN, and the inputs of a broken row would spread through attention, forward and backward. Leaves
    [B,G,...]; of a broken row only `finish` stays. logps: recorded log-probs that count must be finite too.
    """
    latent = (rollout.mask & rollout.is_latent)[..., None]
    finite = [
        jnp.isfinite(rollout.weights) | ~rollout.mask[..., None],
        jnp.isfinite(rollout.scores) | ~latent,
        jnp.isfinite(rollout.logps) | ~rollout.loss_mask if logps else jnp.ones_like(rollout.mask),
    ]
    whole = rollout.finish != Finish.NAN
    for x in finite:
        whole &= x.all(axis=tuple(range(2, x.ndim)))
    kept = jax.tree.map(lambda x: jnp.where(whole.reshape(whole.shape + (1,) * (x.ndim - 2)), x, jnp.zeros_like(x)), rollout)
    return kept.replace(finish=rollout.finish), whole


def latent_terms(is_latent: jax.Array, step: Step, tokens: TokenLogps) -> tuple[Step, TokenLogps]:
    """Both with harmless numbers where a step is not latent, so that no unused log-prob overflows in the backward pass. is_latent [*b]."""
    pick = is_latent[..., None]
    step = step._replace(scores=jnp.where(pick, step.scores, 0.0), weights=jnp.where(pick, step.weights, 1.0 / step.ids.shape[-1]))
    rest, end = (None if x is None else jnp.where(is_latent, x, -1.0) for x in (tokens.rest, tokens.end))
    return step, tokens._replace(chosen=jnp.where(pick, tokens.chosen, 0.0), rest=rest, end=end)


def replay_logps(*args: Any, **settings: Any) -> jax.Array:
    """The log-probs of `replay`, float32 [B,G,T]; same arguments."""
    return replay(*args, **settings)[0]


@jax.named_scope("replay")
def replay(
    params: Params,
    prompts: PromptBatch,
    rollout: Rollout,
    *,
    cfg: ExperimentConfig,
    advantages: jax.Array | None = None,
    share_prefix: bool = True,
    survey: bool = False,
) -> tuple[jax.Array, jax.Array, TokenLogps]:
    """Log-probs of a recorded rollout under `params`, by the same rule as the sampler: (with the law's score gradient, with the plain one, of tokens).

    prompts [B,P]; rollout leaves [B,G,...]; advantages [B,G,T] only matter for score gradients other than plain. Returns float32 [B,G,T] twice, 0
    off the mask (padding is replaced before any exp or log, so NaN there cannot leak), equal but for their gradients and of one pass through the
    model; and the log-probs of the recorded tokens at step_temperature, leaves [B*G,T,...]. survey: as in chunked_logps.
    """
    c = cfg.rollout
    batch, group, length, _ = rollout.ids.shape
    rollout, whole = without_broken(rollout)
    # What broke a whole group may be the prompt itself.
    prompts = prompts.replace(tokens=jnp.where(whole.any(-1, keepdims=True), prompts.tokens, 0))
    mask = rollout.mask
    ids = jnp.where(mask[..., None], rollout.ids, 0)
    weights, scores = (jnp.where(mask[..., None], x, 0.0) for x in (rollout.weights, rollout.scores))
    params = compute_params(params, cfg.model)
    hidden = completion_hidden(params, cfg, prompts, ids, weights, scores, share_prefix=share_prefix)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(batch * group, *x.shape[2:])

    is_latent = flat(rollout.is_latent & mask)
    steps = jnp.arange(length)
    latent_mode = c.mode == "latent"
    is_exit = flat(rollout.thought)[:, None] & (steps == flat(rollout.chain_len)[:, None]) & latent_mode
    noise_scale = jnp.full(is_latent.shape, c.latent.noise_scale if c.latent.noise_scale > 0 else 1.0, jnp.float32)
    banned = jnp.broadcast_to(steps < c.latent.min_latent, is_latent.shape) if latent_mode and c.latent.min_latent else None
    logps = chunked_logps(
        params,
        hidden,
        flat(ids) if latent_mode else flat(ids)[..., :1],
        step_temperature(c, is_latent, is_exit, noise_scale),
        chunk=cfg.train.logprob_chunk,
        banned_id=cfg.data.think_end_id,
        banned=banned,
        with_rest=latent_mode and c.latent.law.needs_rest,
        with_end=latent_mode and c.latent.law.needs_end,
        survey=survey and latent_mode,
    )
    step, safe = latent_terms(is_latent, Step(flat(ids), flat(rollout.scores), flat(weights)), logps)

    def total(given: jax.Array | None) -> jax.Array:
        found = logps.chosen[..., 0]
        if latent_mode:
            latent = c.latent.law.logp(c.latent, step, safe, noise_scale, table=params["embed"], advantages=given)
            found = jnp.where(is_latent, latent, found)
        return jnp.where(mask, found.reshape(batch, group, length), 0.0)

    plain = total(None)
    return plain if advantages is None else total(flat(advantages)), plain, logps
