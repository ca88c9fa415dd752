"""Teacher-forced evaluation of recorded completions: the numbers the sampler produced, differentiable. The learner and supervised training share it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lgrpo.config import ExperimentConfig
from lgrpo.latent.logprobs import TokenLogps, chunked_logps, latent_logp, step_temperature
from lgrpo.latent.mixture import embed_mixture
from lgrpo.models.decoder import compute_params, forward_group
from lgrpo.types import Params, PromptBatch, Rollout


def completion_hidden(
    params: Params, cfg: ExperimentConfig, prompts: PromptBatch, ids: jax.Array, weights: jax.Array, *, share_prefix: bool = True
) -> jax.Array:
    """Hidden states that predict each completion step. prompts [B,P], ids and weights [B,G,T,K] -> [B*G, T, D].

    share_prefix=False repeats the prompt for every sample: the same numbers, more work (for checks and benchmarks).
    """
    batch, group, length, _ = ids.shape
    tokens, mask = prompts.tokens, prompts.mask
    if not share_prefix:
        tokens, mask = jnp.repeat(tokens, group, axis=0), jnp.repeat(mask, group, axis=0)
        ids, weights = ids.reshape(batch * group, 1, length, -1), weights.reshape(batch * group, 1, length, -1)
    embeds = embed_mixture(params["embed"], ids[:, :, :-1], weights[:, :, :-1])  # the last step's input predicts nothing
    last, hidden = forward_group(params, cfg.model, tokens, mask, embeds)
    first = jnp.broadcast_to(last[:, None, None], (*hidden.shape[:2], 1, hidden.shape[-1]))
    return jnp.concatenate([first, hidden], axis=2).reshape(batch * group, length, -1)


def replay_logps(*args: Any, **settings: Any) -> jax.Array:
    """The log-probs of `replay`, float32 [B,G,T]; same arguments."""
    return replay(*args, **settings)[0]


def replay(
    params: Params,
    prompts: PromptBatch,
    rollout: Rollout,
    *,
    cfg: ExperimentConfig,
    advantages: jax.Array | None = None,
    share_prefix: bool = True,
    survey: bool = False,
) -> tuple[jax.Array, TokenLogps]:
    """Log-probs of a recorded rollout under `params`, by the same rule as the sampler.

    prompts [B,P]; rollout leaves [B,G,...]; advantages [B,G,T] only matter for score gradients other than plain. Returns float32 [B,G,T], 0 off
    the mask (padding is replaced before any exp or log, so NaN there cannot leak), and the log-probs of the recorded tokens at step_temperature,
    leaves [B*G,T,...]. survey: as in chunked_logps.
    """
    c = cfg.rollout
    batch, group, length, k = rollout.ids.shape
    mask = rollout.mask
    ids = jnp.where(mask[..., None], rollout.ids, 0)
    weights = jnp.where(mask[..., None], rollout.weights, 0.0)
    params = compute_params(params, cfg.model)
    hidden = completion_hidden(params, cfg, prompts, ids, weights, share_prefix=share_prefix)

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
        with_rest=latent_mode and c.latent.density == "exact",
        survey=survey and latent_mode,
    )
    total = logps.chosen[..., 0]
    if latent_mode:
        # Where a step is not latent its margins are replaced, so that the unused density cannot overflow in the backward pass.
        pick = is_latent[..., None]
        scores = jnp.where(pick, flat(rollout.scores), 0.0)
        safe = TokenLogps(jnp.where(pick, logps.chosen, 0.0), None if logps.rest is None else jnp.where(is_latent, logps.rest, 0.0))
        uniform = jnp.where(pick, flat(weights), 1.0 / k)
        latent = latent_logp(c.latent, scores, safe, uniform, noise_scale, None if advantages is None else flat(advantages))
        total = jnp.where(is_latent, latent, total)
    return jnp.where(mask, total.reshape(batch, group, length), 0.0), logps
