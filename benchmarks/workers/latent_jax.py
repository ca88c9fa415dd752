"""The authors' operations of one latent step, written plainly in JAX: for the ratio within one framework. args: rows, vocab, k, repeats."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.shapes import random_logits
from benchmarks.timing import measure


def latent_step(logits: jax.Array, key: jax.Array, k: int, top_p: float = 0.95) -> tuple[jax.Array, jax.Array]:
    """As benchmarks.workers.latent_torch.latent_step."""
    logps = jax.nn.log_softmax(logits, axis=-1)
    order = jnp.argsort(-logps, axis=-1)
    probs = jnp.exp(jnp.take_along_axis(logps, order, axis=-1))
    drop = (jnp.cumsum(probs, axis=-1) - probs >= top_p).at[:, :k].set(False)
    rows = jnp.arange(logits.shape[0])[:, None]
    outside = jnp.zeros_like(drop).at[rows, order].set(drop)
    noise = jnp.clip(jax.random.gumbel(key, logits.shape), -1.5, 3.0) + 1.5
    scores, ids = jax.lax.top_k(jnp.where(outside, -jnp.inf, logps + noise), k)
    return ids, jax.nn.softmax(scores, axis=-1)


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one step for all rows."""
    logits = jnp.asarray(random_logits(args["rows"], args["vocab"]))
    step, keys = jax.jit(latent_step, static_argnums=2), iter(range(10_000))
    return measure(lambda: jax.block_until_ready(step(logits, jax.random.key(next(keys)), args["k"])), args["repeats"])
