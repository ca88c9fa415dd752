"""One sampling step by lgrpo. args: rows, vocab, k, step (exact, paper, token), repeats."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.shapes import Shape, random_logits
from benchmarks.timing import measure
from benchmarks.workers.common import experiment
from lgrpo.latent.tokens import sample_token


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one step for all rows, one key a row as in the rollout."""
    rows, vocab, k = args["rows"], args["vocab"], args["k"]
    logits = jnp.asarray(random_logits(rows, vocab))
    keys = iter(range(10_000))
    cfg = experiment(Shape(vocab=vocab, k=k), "explicit" if args["step"] == "token" else args["step"], diff={"rollout.latent.k": k})
    latent, answer = cfg.rollout.latent, cfg.rollout.answer

    @jax.jit
    def step(logits: jax.Array, key: jax.Array) -> Any:
        row_keys = jax.random.split(key, rows)
        if args["step"] == "token":
            return sample_token(logits, row_keys, answer)
        return latent.law.draw(latent, logits, row_keys, jnp.full((rows,), latent.noise_scale, jnp.float32), cfg.data.think_end_id)

    return measure(lambda: jax.block_until_ready(step(logits, jax.random.key(next(keys)))), args["repeats"])
