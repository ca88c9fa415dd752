"""Ordinary sampling: answers after thinking, and every token of an explicit chain."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lgrpo.config import AnswerConfig
from lgrpo.latent.draw import categorical, top_k
from lgrpo.latent.mixture import mark, nucleus


def truncate(logits: jax.Array, top_p: float, keep: int) -> jax.Array:
    """-inf outside the `keep` most likely tokens and the nucleus of what remains. logits [N,V]; top_p 1 and keep 0 leave them alone."""
    if keep:
        ids = top_k(logits, min(keep, logits.shape[-1]))[1]
        logits = jnp.where(mark(ids, logits.shape[-1]), logits, -jnp.inf)
    if top_p < 1.0:
        logits = jnp.where(nucleus(jax.nn.softmax(logits, axis=-1), top_p), logits, -jnp.inf)
    return logits


def sample_token(logits: jax.Array, keys: jax.Array, cfg: AnswerConfig) -> jax.Array:
    """One token a row by inverse CDF: a single uniform number instead of V. logits float32 [N,V], keys [N] -> int32 [N].

    Handles samplers `sample` and `greedy`; gumbel_top1 shares the latent step's noise and is handled by the rollout.
    """
    if cfg.sampler == "greedy":
        return top_k(logits, 1)[1][:, 0].astype(jnp.int32)
    return categorical(truncate(logits / cfg.temperature, cfg.top_p, cfg.top_k), keys)
