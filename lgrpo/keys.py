"""The only place that makes random keys: a key is a function of (seed, step, stream), so resuming needs no saved generator."""

from __future__ import annotations

import enum
import functools

import jax
import numpy as np


class Stream(enum.IntEnum):
    """Independent uses of randomness within one step."""

    INIT = 0
    ROLLOUT = 1
    LABEL_NOISE = 2
    EVALUATION = 3
    DROPOUT = 4


def key_for(seed: int | jax.Array, step: int | jax.Array, stream: Stream) -> jax.Array:
    """Key of one use of randomness in one step. Errors: ValueError for a negative seed."""
    if isinstance(seed, int):
        if seed < 0:
            raise ValueError(f"seed: {seed} is negative; use a number >= 0")
        return _folded(np.uint32(seed), step, int(stream))  # an array, so that another seed is not another program
    return _folded(seed, step, int(stream))


@functools.partial(jax.jit, static_argnames=("stream",))  # one program instead of three
def _folded(seed: jax.Array | np.uint32, step: int | jax.Array, stream: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), stream)


def row_keys(key: jax.Array, uids: jax.Array, group_size: int, first_sample: int | jax.Array = 0) -> jax.Array:
    """Keys [B * G]: one per (prompt, sample), the same whatever else is in the batch. uids: int32 [B]."""
    samples = jax.numpy.arange(group_size) + first_sample
    per_prompt = jax.vmap(lambda u: jax.random.fold_in(key, u))(uids)
    grid = jax.vmap(lambda k: jax.vmap(lambda g: jax.random.fold_in(k, g))(samples))(per_prompt)
    return grid.reshape(-1)
