"""Key/value cache of a group-sampled rollout: prompts stored once, completions per sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lgrpo.config import ModelConfig


@struct.dataclass
class GroupCache:
    """Column t of k and v is final once decode step t has run; prompt_k and prompt_v never change."""

    prompt_k: jax.Array  # [L,B,P,Kv,Dh]
    prompt_v: jax.Array  # [L,B,P,Kv,Dh]
    prompt_mask: jax.Array  # bool [B,P]
    prompt_len: jax.Array  # int32 [B]; position of the first completion step
    k: jax.Array  # [L,B,G,T,Kv,Dh]
    v: jax.Array  # [L,B,G,T,Kv,Dh]


def make_cache(
    cfg: ModelConfig,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    prompt_mask: jax.Array,
    group: int,
    length: int,
    dtype: str = "compute",
) -> GroupCache:
    """An empty completion cache [L,B,group,length,Kv,Dh] beside prefilled prompts [L,B,P,Kv,Dh]. dtype: "compute" keeps that of prompt_k."""
    if dtype != "compute":
        prompt_k, prompt_v = prompt_k.astype(dtype), prompt_v.astype(dtype)
    shape = (cfg.n_layers, prompt_k.shape[1], group, length, cfg.n_kv_heads, cfg.head_dim)
    empty = jnp.zeros(shape, prompt_k.dtype)
    return GroupCache(prompt_k, prompt_v, prompt_mask, prompt_mask.sum(-1).astype(jnp.int32), empty, empty)


def write_step(cache: GroupCache, k: jax.Array, v: jax.Array, step: jax.Array) -> GroupCache:
    """Column `step` of every layer at once. k, v [L,B,G,Kv,Dh]. Outside the layer scan, so that XLA updates in place."""
    start = (0, 0, 0, step, 0, 0)
    return cache.replace(
        k=jax.lax.dynamic_update_slice(cache.k, k[:, :, :, None].astype(cache.k.dtype), start),
        v=jax.lax.dynamic_update_slice(cache.v, v[:, :, :, None].astype(cache.v.dtype), start),
    )
