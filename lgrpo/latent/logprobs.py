"""Log-probs of a few tokens per position without ever holding [N, T, V] logits, and the one rule that turns them into step log-probs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgrpo.config import LatentConfig, RolloutConfig
from lgrpo.latent.draw import block_masses, rest_mass
from lgrpo.latent.noise import score_logp
from lgrpo.models.decoder import logits_of
from lgrpo.types import Params

BANNED = -1e30  # finite, so that 0 * logit and logit - logit stay finite


def ban(logits: jax.Array, token: int, banned: jax.Array) -> jax.Array:
    """Makes `token` impossible where banned [...]. logits [..., V]."""
    return logits.at[..., token].set(jnp.where(banned, BANNED, logits[..., token]))


class TokenLogps(NamedTuple):
    """Log-probs of K tokens per position, and of all others together (None where nobody needs it)."""

    chosen: jax.Array  # float32 [..., K]
    rest: jax.Array | None  # float32 [...]


def token_logps(logits: jax.Array, ids: jax.Array, temperature: jax.Array, *, with_rest: bool = False) -> TokenLogps:
    """log softmax(logits / temperature) at ids. logits float32 [..., V], ids [..., K], temperature [...]."""
    scaled = logits / temperature[..., None]
    highest, sums = block_masses(scaled)
    total = highest[..., 0] + jnp.log(sums.sum(-1))
    chosen = jnp.take_along_axis(scaled, ids, axis=-1) - total[..., None]
    if not with_rest:
        return TokenLogps(chosen, None)
    rest = rest_mass(scaled, highest, sums, ids)
    some = rest > 0  # K = V leaves nothing outside the mixture; a floor instead would count where the chosen ones are that small too
    return TokenLogps(chosen, jnp.where(some, highest[..., 0] + jnp.log(jnp.where(some, rest, 1.0)) - total, BANNED))


def chunked_logps(
    params: Params,
    hidden: jax.Array,
    ids: jax.Array,
    temperature: jax.Array,
    *,
    chunk: int,
    banned_id: int = 0,
    banned: jax.Array | None = None,
    with_rest: bool = False,
) -> TokenLogps:
    """token_logps of hidden states, `chunk` positions at a time, recomputed in the backward pass.

    hidden [N,T,D], ids int [N,T,K], temperature [N,T], banned bool [N,T] (where banned_id is impossible) -> float32 [N,T,K] and [N,T].
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
    def one(hidden: jax.Array, ids: jax.Array, temperature: jax.Array, banned: jax.Array) -> TokenLogps:
        return token_logps(ban(logits_of(params, hidden), banned_id, banned), ids, temperature, with_rest=with_rest)

    out = jax.lax.map(lambda xs: one(*xs), (slices(hidden), slices(ids), slices(temperature, fill=1), slices(banned)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, count * width, *x.shape[3:])[:, :length], out)


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
    cfg: LatentConfig,
    scores: jax.Array,
    tokens: TokenLogps,
    weights: jax.Array,
    noise_scale: jax.Array,
    advantages: jax.Array | None = None,
) -> jax.Array:
    """Density of recorded latent steps. scores, weights [*b,K]; tokens at step_temperature; noise_scale, advantages [*b] -> [*b]."""
    scale, logps = noise_scale[..., None], tokens.chosen
    if cfg.density == "exact":
        return score_logp(scores / scale, logps, density="exact", rest_logp=tokens.rest)
    settings = {"density": cfg.density, "score_gradient": cfg.score_gradient, "advantages": advantages, "weights": weights}
    if cfg.density_scale == "unit":
        return score_logp(scores, logps, **settings)
    return score_logp(scores / scale, logps / scale, **settings) - jnp.log(noise_scale)
