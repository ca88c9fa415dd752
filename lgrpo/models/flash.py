"""Attention of the libraries, for sequences whose scores are too many to keep: `jax.nn.dot_product_attention` (cuDNN) and splash attention (Pallas, TPU).

Both compute what models/attention.py computes, on the packed sequence of a group: P prompt positions, then G completions of T, each of which
sees the prompt and its own past. Only training and prefill come here; a decode step has one query per row and gains nothing.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec

from lgrpo.config import ModelConfig
from lgrpo.sharding import BATCH_AXES, batch_ways, platform

Backend = Literal["plain", "cudnn", "splash"]
_BLOCK = 512  # the largest block; lanes of a TPU are 128 wide
_LANES = 128
_LONG = 1024  # auto leaves shorter rows to XLA: their scores fit, and a group of them fills few blocks


def attention_backend(cfg: ModelConfig, length: int) -> Backend:
    """What cfg.attention means for rows of `length` positions where the program will run."""
    if cfg.attention != "auto":
        return cfg.attention
    if length < _LONG:
        return "plain"
    if (where := platform()) == "tpu":
        return "splash"
    return "cudnn" if where in ("gpu", "cuda") and cfg.dtype == "bfloat16" else "plain"


class _GroupMask(splash_attention_mask.Mask):
    """Who sees whom in a packed group, read block by block: with long completions the whole mask would not fit into memory.

    Positions from prompt + group * length on are padding, which sees itself.
    """

    def __init__(self, prompt: int, group: int, length: int, size: int):
        self.key = (prompt, group, length, size)

    @property
    def shape(self) -> tuple[int, int]:
        return self.key[3], self.key[3]

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        prompt, group, length, size = self.key
        rows, columns = (np.arange(size)[part] for part in index)

        def owner(x: np.ndarray) -> np.ndarray:
            """-1: prompt; group: padding."""
            return np.where(x < prompt, -1, np.minimum((x - prompt) // max(length, 1), group))

        if rows.size and columns.size and columns[0] > rows[-1]:  # half of all blocks
            return np.zeros((rows.size, columns.size), bool)
        own = owner(columns)[None] == owner(rows)[:, None]
        shared = (columns < prompt)[None] & (rows < prompt + group * length)[:, None]
        return (own | shared) & (columns[None] <= rows[:, None])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _GroupMask) and self.key == other.key

    def __hash__(self) -> int:
        return hash((type(self), self.key))


def _splash_kernel(
    heads: int, prompt: int, group: int, length: int, size: int, interpret: bool
) -> splash_attention_kernel.SplashAttentionKernel:
    block = next(b for b in (_BLOCK, 256, _LANES) if size % b == 0)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    mask = splash_attention_mask.MultiHeadMask([_GroupMask(prompt, group, length, size)] * heads)
    return splash_attention_kernel.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, shape: tuple[int, int, int], interpret: bool) -> jax.Array:
    """One device's rows and heads. q [B,S,H,Dh], k and v [B,S,Kv,Dh], segments int32 [B,S]: positions of different ones do not see each other."""
    length, heads, width = q.shape[1:]
    size = -(-length // _LANES) * _LANES
    kernel = _splash_kernel(heads, *shape, size, interpret)

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0), (0, size - length), (0, 0), (0, 0)]).swapaxes(1, 2)

    segments = jnp.pad(segments, ((0, 0), (0, size - length)))
    out = jax.vmap(kernel)(pad(q * width**-0.5), pad(k), pad(v), splash_attention_kernel.SegmentIds(segments, segments))
    return out.swapaxes(1, 2)[:, :length]


def splash_group(q: jax.Array, k: jax.Array, v: jax.Array, prompt_mask: jax.Array, group: int, *, interpret: bool = False) -> jax.Array:
    """Splash attention of packed groups, blocks that nobody sees skipped. q [B,S,H,Dh], k and v [B,S,Kv,Dh] with S = P + group * T, prompt_mask
    bool [B,P], padded on the left -> [B,S,H,Dh]. group 0: prompts alone. interpret: run it without a TPU, slowly, for tests.
    """
    (batch, prompt), length = prompt_mask.shape, q.shape[1]
    # Left padding is a segment of its own: it is neither seen nor does it see.
    segments = jnp.concatenate([prompt_mask, jnp.ones((batch, length - prompt), bool)], axis=1).astype(jnp.int32)
    return _splash_rows(q, k, v, segments, (prompt, group, (length - prompt) // group if group else 0), interpret)


def splash_packed(q: jax.Array, k: jax.Array, v: jax.Array, record: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Splash attention of rows of several sequences, each causal and apart from the others. Shapes as in splash_group, record int [B,S]."""
    return _splash_rows(q, k, v, record.astype(jnp.int32), (q.shape[1], 0, 0), interpret)


def _splash_rows(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, shape: tuple[int, int, int], interpret: bool) -> jax.Array:
    """_splash on the mesh, if there is one."""
    run = functools.partial(_splash, shape=shape, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(q, k, v, segments)
    # A kernel cannot be partitioned by the compiler. Rows that do not divide (a small evaluation batch) stay whole, as in constrain_batch.
    rows = BATCH_AXES if q.shape[0] % batch_ways(mesh) == 0 else None
    spec = PartitionSpec(rows, None, "tensor", None)
    return jax.shard_map(run, in_specs=(spec, spec, spec, PartitionSpec(rows, None)), out_specs=spec, check_vma=False)(q, k, v, segments)


def dot_product_group(
    q: jax.Array, k: jax.Array, v: jax.Array, prompt_mask: jax.Array, group: int, *, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> jax.Array:
    """splash_group by jax.nn.dot_product_attention: the prompts, then every completion over a copy of its prompt's keys. cuDNN takes 16-bit types."""
    attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    (batch, prompt), width = prompt_mask.shape, q.shape[-1]
    causal = jnp.tril(jnp.ones((prompt, prompt), bool))
    # Padding sees itself: a row without anything to see is not defined.
    visible = (causal & prompt_mask[:, None]) | jnp.eye(prompt, dtype=bool)
    out = attend(q[:, :prompt], k[:, :prompt], v[:, :prompt], mask=visible[:, None])
    if not group:
        return out
    length = (q.shape[1] - prompt) // group

    def completions(x: jax.Array) -> jax.Array:
        return x[:, prompt:].reshape(batch * group, length, *x.shape[2:])

    def keys(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.repeat(x[:, :prompt], group, axis=0), completions(x)], axis=1)

    own = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch * group, length, length))
    shared = jnp.broadcast_to(jnp.repeat(prompt_mask, group, axis=0)[:, None], (batch * group, length, prompt))
    rest = attend(completions(q), keys(k), keys(v), mask=jnp.concatenate([shared, own], axis=-1)[:, None])
    return jnp.concatenate([out, rest.reshape(batch, group * length, -1, width)], axis=1)


def flash_group(q: jax.Array, k: jax.Array, v: jax.Array, prompt_mask: jax.Array, group: int, backend: Backend) -> jax.Array:
    """splash_group or dot_product_group."""
    return (splash_group if backend == "splash" else dot_product_group)(q, k, v, prompt_mask, group)


def flash_packed(q: jax.Array, k: jax.Array, v: jax.Array, record: jax.Array, visible: jax.Array, backend: Backend) -> jax.Array:
    """Rows of several sequences. record int [B,S]; visible bool [B,S,S] says the same of every query and key."""
    if backend == "splash":
        return splash_packed(q, k, v, record)
    return jax.nn.dot_product_attention(q, k, v, mask=visible[:, None], implementation="cudnn")
