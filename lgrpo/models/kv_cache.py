"""Key/value cache of a group-sampled rollout: prompts stored once, completions per sample, in parts that are made when they are needed."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from lgrpo.config import ModelConfig


@struct.dataclass
class GroupCache:
    """Keys and values of prompts, of closed parts (every column filled) and of the open part k, v, which steps write to."""

    prompt_k: jax.Array  # [L,B,P,Kv,Dh]
    prompt_v: jax.Array  # [L,B,P,Kv,Dh]
    prompt_mask: jax.Array  # bool [B,P]
    prompt_len: jax.Array  # int32 [B]; position of the first completion step
    closed: tuple[tuple[jax.Array, jax.Array], ...]  # keys and values [L,B,G,w,Kv,Dh], earliest part first
    k: jax.Array  # [L,B,G,w,Kv,Dh]
    v: jax.Array  # [L,B,G,w,Kv,Dh]

    @property
    def start(self) -> int:
        """Columns in the closed parts: the completion step that the open part begins with."""
        return sum(k.shape[3] for k, _ in self.closed)


def make_cache(
    cfg: ModelConfig,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    prompt_mask: jax.Array,
    group: int,
    length: int,
    dtype: str = "compute",
) -> GroupCache:
    """An empty open part [L,B,group,length,Kv,Dh] beside prefilled prompts [L,B,P,Kv,Dh]. dtype: "compute" keeps that of prompt_k."""
    if dtype != "compute":
        prompt_k, prompt_v = prompt_k.astype(dtype), prompt_v.astype(dtype)
    shape = (cfg.n_layers, prompt_k.shape[1], group, length, cfg.n_kv_heads, cfg.head_dim)
    empty = jnp.zeros(shape, prompt_k.dtype)
    return GroupCache(prompt_k, prompt_v, prompt_mask, prompt_mask.sum(-1).astype(jnp.int32), (), empty, empty)


def cache_widths(length: int, parts: int) -> list[int]:
    """Columns of each part of a cache for `length` decode steps: `parts` parts, or fewer where they would be below 32 columns."""
    width = math.ceil(length / max(1, min(parts, length // 32)))
    return [min(width, length - start) for start in range(0, length, width)]


def close_part(cache: GroupCache, length: int) -> GroupCache:
    """Closes the open part, which must be full, and opens an empty one of `length` columns. Nothing is copied."""
    shape = (*cache.k.shape[:3], length, *cache.k.shape[4:])
    empty = jnp.zeros(shape, cache.k.dtype)
    return cache.replace(closed=(*cache.closed, (cache.k, cache.v)), k=empty, v=empty)


def write_step(cache: GroupCache, k: jax.Array, v: jax.Array, column: jax.Array) -> GroupCache:
    """Column `column` of the open part in every layer at once. k, v [L,B,G,Kv,Dh]. Outside the layer scan, so that XLA updates in place.

    Values that are not finite are stored as 0: the row that has them ends here, and what it still computes, which nobody reads, is finite again.
    """
    start = (0, 0, 0, column, 0, 0)
    k, v = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (k, v))
    return cache.replace(
        k=jax.lax.dynamic_update_slice(cache.k, k[:, :, :, None].astype(cache.k.dtype), start),
        v=jax.lax.dynamic_update_slice(cache.v, v[:, :, :, None].astype(cache.v.dtype), start),
    )
