"""Grouped-query attention over one or several blocks of keys under one softmax.

A completion attends to its prompt, whose keys are stored once per group, and to itself. Instead of copying the prompt for every sample the
scores of the blocks are concatenated before the softmax: `P + G*T` keys in memory, not `G*(P+T)`. All softmaxes are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

_MASKED = -1e30  # finite, so that a row with nothing to see gives a uniform softmax and no NaN


def _heads(q: jax.Array, kv_heads: int) -> jax.Array:
    """[..., H, Dh] -> [..., Kv, R, Dh], R query heads per key head."""
    return q.reshape(*q.shape[:-2], kv_heads, q.shape[-2] // kv_heads, q.shape[-1])


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Plain attention. q [N,S,H,Dh], k and v [N,C,Kv,Dh], mask bool [N,S,C] (True: may look) -> [N,S,H,Dh]."""
    grouped = _heads(q, k.shape[-2])
    scores = jnp.einsum("nskrd,nckd->nkrsc", grouped, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    probs = jax.nn.softmax(jnp.where(mask[:, None, None], scores, _MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("nkrsc,nckd->nskrd", probs, v).reshape(q.shape)


def attend_group(
    q: jax.Array, k: jax.Array, v: jax.Array, prompt_k: jax.Array, prompt_v: jax.Array, prompt_mask: jax.Array, mask: jax.Array
) -> jax.Array:
    """Completions of a group attend to their shared prompt and causally to themselves.

    q [B,G,T,H,Dh]; k, v [B,G,T,Kv,Dh]; prompt_k, prompt_v [B,P,Kv,Dh]; prompt_mask bool [B,P]; mask bool [B,G,T,T] -> [B,G,T,H,Dh].
    """
    grouped = _heads(q, k.shape[-2])
    scale = q.shape[-1] ** -0.5
    to_prompt = jnp.einsum("bgtkrd,bpkd->bkrgtp", grouped, prompt_k, preferred_element_type=jnp.float32) * scale
    to_prompt = jnp.where(prompt_mask[:, None, None, None, None], to_prompt, _MASKED)
    to_self = jnp.einsum("bgtkrd,bgckd->bkrgtc", grouped, k, preferred_element_type=jnp.float32) * scale
    to_self = jnp.where(mask[:, None, None], to_self, _MASKED)
    probs = jax.nn.softmax(jnp.concatenate([to_prompt, to_self], axis=-1), axis=-1).astype(v.dtype)
    split = prompt_k.shape[1]
    out = jnp.einsum("bkrgtp,bpkd->bgtkrd", probs[..., :split], prompt_v)
    out = out + jnp.einsum("bkrgtc,bgckd->bgtkrd", probs[..., split:], v)
    return out.reshape(q.shape)


def attend_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    prompt_mask: jax.Array,
    past: Sequence[tuple[jax.Array, jax.Array, jax.Array | None]],
) -> jax.Array:
    """One decode step: the shared prompt, the completion's own past, and the step itself.

    q [B,G,H,Dh]; k, v [B,G,Kv,Dh] of the step; prompt_k, prompt_v [B,P,Kv,Dh]; prompt_mask bool [B,P]; past: blocks of keys and values
    [B,G,w,Kv,Dh] with a mask bool [w], None where all may be seen -> [B,G,H,Dh].
    """
    grouped = _heads(q, k.shape[-2])
    scale = q.shape[-1] ** -0.5
    to_prompt = jnp.einsum("bgkrd,bpkd->bgkrp", grouped, prompt_k, preferred_element_type=jnp.float32) * scale
    to_prompt = jnp.where(prompt_mask[:, None, None, None], to_prompt, _MASKED)
    to_past = []
    for block, _, mask in past:
        scores = jnp.einsum("bgkrd,bgtkd->bgkrt", grouped, block, preferred_element_type=jnp.float32) * scale
        to_past.append(scores if mask is None else jnp.where(mask, scores, _MASKED))
    to_self = jnp.einsum("bgkrd,bgkd->bgkr", grouped, k, preferred_element_type=jnp.float32)[..., None] * scale
    probs = jax.nn.softmax(jnp.concatenate([to_prompt, *to_past, to_self], axis=-1), axis=-1).astype(v.dtype)
    at = prompt_k.shape[1]
    out = jnp.einsum("bgkrp,bpkd->bgkrd", probs[..., :at], prompt_v)
    for _, block, _ in past:
        out = out + jnp.einsum("bgkrt,bgtkd->bgkrd", probs[..., at : at + block.shape[2]], block)
        at += block.shape[2]
    return (out + probs[..., -1:] * v[:, :, :, None]).reshape(q.shape)
