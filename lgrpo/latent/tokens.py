"""Ordinary sampling: answers after thinking, and every token of an explicit chain."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lgrpo.config import AnswerConfig
from lgrpo.latent.mixture import _mark, nucleus


def truncate(logits: jax.Array, top_p: float, top_k: int) -> jax.Array:
    """-inf outside the k most likely tokens and the nucleus of what remains. logits [N,V]; top_p 1 and top_k 0 leave them alone."""
    if top_k:
        ids = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[1]
        logits = jnp.where(_mark(ids, logits.shape[-1]), logits, -jnp.inf)
    if top_p < 1.0:
        logits = jnp.where(nucleus(jax.nn.softmax(logits, axis=-1), top_p), logits, -jnp.inf)
    return logits


def sample_token(logits: jax.Array, keys: jax.Array, cfg: AnswerConfig) -> jax.Array:
    """One token a row by inverse CDF: a single uniform number instead of V. logits float32 [N,V], keys [N] -> int32 [N].

    Handles samplers `sample` and `greedy`; gumbel_top1 shares the latent step's noise and is handled by the rollout.
    """
    if cfg.sampler == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = truncate(logits / cfg.temperature, cfg.top_p, cfg.top_k)
    cdf = jnp.cumsum(jax.nn.softmax(kept, axis=-1), axis=-1)
    draw = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(keys)[:, None] * cdf[:, -1:]
    token = jnp.sum(cdf <= draw, axis=-1)
    # A draw rounded up to the total would fall past the end: take the last token with mass instead.
    last = logits.shape[-1] - 1 - jnp.argmax(jnp.isfinite(kept)[:, ::-1], axis=-1)
    return jnp.minimum(token, last).astype(jnp.int32)
