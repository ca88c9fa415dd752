"""Log-probs of a few tokens per position without ever holding [N, T, V] logits, and the one rule that turns them into step log-probs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lgrpo.config import LatentConfig, RolloutConfig
from lgrpo.latent.noise import score_logp
from lgrpo.models.decoder import logits_of
from lgrpo.types import Params

BANNED = -1e30  # finite, so that 0 * logit and logit - logit stay finite


def ban(logits: jax.Array, token: int, banned: jax.Array) -> jax.Array:
    """Makes `token` impossible where banned [...]. logits [..., V]."""
    return logits.at[..., token].set(jnp.where(banned, BANNED, logits[..., token]))


def token_logps(logits: jax.Array, ids: jax.Array, temperature: jax.Array) -> jax.Array:
    """log softmax(logits / temperature) at ids. logits float32 [..., V], ids [..., K], temperature [...] -> [..., K]."""
    scaled = logits / temperature[..., None]
    chosen = jnp.take_along_axis(scaled, ids, axis=-1)
    return chosen - jax.nn.logsumexp(scaled, axis=-1, keepdims=True)


def chunked_logps(
    params: Params, hidden: jax.Array, ids: jax.Array, temperature: jax.Array, *, chunk: int, banned_id: int = 0, banned: jax.Array | None = None
) -> jax.Array:
    """token_logps of hidden states, `chunk` positions at a time, recomputed in the backward pass.

    hidden [N,T,D], ids int [N,T,K], temperature [N,T], banned bool [N,T] (where banned_id is impossible) -> float32 [N,T,K].
    The slices run along T, so that a sharded N stays where it is.
    """
    rows, length = ids.shape[:2]
    width = max(1, min(length, chunk // rows))
    count = -(-length // width)

    def slices(x: jax.Array, fill: float = 0) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, count * width - length)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
        return jnp.moveaxis(x.reshape(rows, count, width, *x.shape[2:]), 1, 0)

    banned = jnp.zeros((rows, length), bool) if banned is None else banned

    @jax.checkpoint
    def one(hidden: jax.Array, ids: jax.Array, temperature: jax.Array, banned: jax.Array) -> jax.Array:
        return token_logps(ban(logits_of(params, hidden), banned_id, banned), ids, temperature)

    out = jax.lax.map(lambda xs: one(*xs), (slices(hidden), slices(ids), slices(temperature, fill=1), slices(banned)))
    return jnp.moveaxis(out, 0, 1).reshape(rows, count * width, -1)[:, :length]


def step_temperature(cfg: RolloutConfig, is_latent: jax.Array, is_exit: jax.Array, noise_scale: jax.Array) -> jax.Array:
    """Temperature at which each step's tokens are scored. is_latent, is_exit (ended latent thinking), noise_scale: [N,T] -> float32 [N,T].

    Latent steps: 1, and the noise scale under `exact`, whose law is that of softmax(l / s). The step that ends latent thinking was chosen by
    the same noise, so `exact` scores it at s too; the other densities score it as the official code does, like an answer token.
    """
    answer = jnp.full(is_latent.shape, cfg.answer.temperature, jnp.float32)
    if cfg.latent.density == "exact":
        return jnp.where(is_latent | is_exit, noise_scale, answer)
    return jnp.where(is_latent, 1.0, answer)


def latent_logp(
    cfg: LatentConfig, scores: jax.Array, logps: jax.Array, weights: jax.Array, noise_scale: jax.Array, advantages: jax.Array | None = None
) -> jax.Array:
    """Density of recorded latent steps. scores, logps (at step_temperature), weights [*b,K]; noise_scale, advantages [*b] -> [*b]."""
    scale = noise_scale[..., None]
    if cfg.density == "exact":
        return score_logp(scores / scale, logps, density="exact")
    settings = {"density": cfg.density, "score_gradient": cfg.score_gradient, "advantages": advantages, "weights": weights}
    if cfg.density_scale == "unit":
        return score_logp(scores, logps, **settings)
    return score_logp(scores / scale, logps / scale, **settings) - jnp.log(noise_scale)
