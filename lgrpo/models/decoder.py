"""Llama and Qwen2 decoders: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Logits are never formed here.

`run_blocks` is the one loop over layers; what a position may attend to is a function that the caller passes in. `forward` is the plain
model, `prefill` and `decode_step` serve the rollout, `forward_group` the learner, `forward_packed` supervised training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lgrpo.config import ModelConfig
from lgrpo.models import flash
from lgrpo.models.attention import attend, attend_group, attend_step
from lgrpo.models.kv_cache import GroupCache, write_step
from lgrpo.models.lora import is_low_rank
from lgrpo.models.products import SAVED, by_instruction, product, transposed
from lgrpo.sharding import TRAIN_RULES, constrain, constrain_batch
from lgrpo.types import Params

# (q [B,S,H,Dh], k [B,S,Kv,Dh], v, per-layer extras) -> (output [B,S,H,Dh], per-layer result)
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def compute_params(params: Params, cfg: ModelConfig) -> Params:
    """Weights in the type of the computation. Rollout and learner both start here, so that they see the same rounded numbers.

    A matrix with its adapter is rounded once they are one, in run_blocks.
    """
    return jax.tree.map(lambda x: x if is_low_rank(x) else x.astype(cfg.dtype), params, is_leaf=is_low_rank)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32. x [..., D], weight [D]."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide.astype(x.dtype)) * weight.astype(x.dtype)


def rope_frequencies(cfg: ModelConfig) -> jax.Array:
    """Rotary frequencies in radians per position, float32 [Dh / 2], with Llama-3 scaling where the config has it."""
    freqs = cfg.rope_theta ** (-jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
    scaling = cfg.rope_scaling
    if scaling is None:
        return freqs
    wavelength = 2 * math.pi / freqs
    ratio = scaling.original_max_position / wavelength
    # 0 where the wavelength is long (fully scaled), 1 where it is short (left alone), linear between.
    share = jnp.clip((ratio - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0)
    return freqs * (share + (1 - share) / scaling.factor)


def rope_tables(cfg: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [..., 1, Dh / 2], for positions [...]; the 1 is the head axis."""
    angles = positions[..., None, None].astype(jnp.float32) * rope_frequencies(cfg)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + Dh/2) of x [..., H, Dh], as Hugging Face stores them."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _dense(x: jax.Array, weight: jax.Array, over: int = 1) -> jax.Array:
    """The last `over` axes of x contracted with the first ones of weight.

    As a product of two matrices: with several leading axes XLA on CPU transposes activations in the backward pass, which costs more than the
    products do. (Leading axes are sharded on the first only, so that merging them moves nothing.)
    """
    lead, out = x.shape[: x.ndim - over], weight.shape[over:]
    width = math.prod(x.shape[x.ndim - over :])
    return product(x.reshape(-1, width), weight.reshape(width, -1)).reshape(*lead, *out)


def _block(
    cfg: ModelConfig, p: Params, x: jax.Array, rope: tuple[jax.Array, jax.Array], attention: Attend, extras: Any
) -> tuple[jax.Array, Any]:
    h = rms_norm(x, p["attn_norm"], cfg.rms_eps)
    q, k, v = _dense(h, p["wq"]), _dense(h, p["wk"]), _dense(h, p["wv"])
    if "bq" in p:
        q, k, v = q + p["bq"], k + p["bk"], v + p["bv"]
    if "q_norm" in p:
        q, k = rms_norm(q, p["q_norm"], cfg.rms_eps), rms_norm(k, p["k_norm"], cfg.rms_eps)
    out, result = attention(apply_rope(q, *rope), apply_rope(k, *rope), v, extras)
    x = x + _dense(out, p["wo"], over=2)
    # Flat through the whole layer, not dot by dot: see _dense.
    h = rms_norm(x, p["mlp_norm"], cfg.rms_eps).reshape(-1, x.shape[-1])
    gated = jax.nn.silu(product(h, p["w_gate"])) * product(h, p["w_up"])
    return x + product(gated, p["w_down"]).reshape(x.shape), result


def run_blocks(
    params: Params, cfg: ModelConfig, x: jax.Array, positions: jax.Array, attention: Attend, extras: Any = None
) -> tuple[jax.Array, Any]:
    """All blocks and the final norm. x [..., D], positions [...]; `extras` and the results have a leading layer axis."""
    rope = rope_tables(cfg, positions)

    def body(x: jax.Array, layer: tuple[Params, Any]) -> tuple[jax.Array, Any]:
        weights = {name: w.merged().astype(cfg.dtype) if is_low_rank(w) else w for name, w in layer[0].items()}
        return _block(cfg, weights, x, rope, attention, layer[1])

    # Elementwise results are recomputed in any case: they are most of the memory and next to none of the time.
    keep = None if cfg.remat else jax.checkpoint_policies.save_only_these_names(SAVED)
    body = jax.checkpoint(body, policy=keep, prevent_cse=False)  # inside a scan nothing could be merged with the forward pass
    x, results = jax.lax.scan(body, constrain_batch(x.astype(cfg.dtype)), (params["blocks"], extras))
    return rms_norm(x, params["final_norm"], cfg.rms_eps), results


def unembedding(params: Params) -> jax.Array:
    """Output projection [D, V]."""
    return params["unembed"] if "unembed" in params else transposed(params["embed"])


def with_unembedding(params: Params) -> Params:
    """For a loop that reads the output projection at every step: where a tied one would be copied there, one that was copied before."""
    copied = "unembed" not in params and by_instruction(params["embed"].dtype)
    return params | {"unembed": transposed(params["embed"])} if copied else params


def whole_table(table: jax.Array) -> jax.Array:
    """An output projection [D, V] gathered over data and fsdp: what reads it slice by slice would gather it for every slice."""
    return constrain(table, None, TRAIN_RULES["vocab"])


def logits_of(params: Params, hidden: jax.Array) -> jax.Array:
    """Float32 logits [..., V] of a few positions (decode steps, chunks). hidden [..., D]."""
    return project(hidden, unembedding(params).astype(hidden.dtype))


def project(x: jax.Array, table: jax.Array) -> jax.Array:
    """x [..., D] times table [D, V], accumulated and returned in float32."""
    return jnp.einsum("...d,dv->...v", x, table, preferred_element_type=jnp.float32)


def prompt_positions(mask: jax.Array) -> jax.Array:
    """Positions of left-padded prompts: 0 at the first real token. mask bool [B,P] -> int32 [B,P]."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def causal_mask(mask: jax.Array) -> jax.Array:
    """bool [N,S] of real tokens -> bool [N,S,S]: query s sees real tokens c <= s."""
    length = mask.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & mask[..., None, :]


def forward(params: Params, cfg: ModelConfig, embeds: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
    """The plain model. embeds [N,S,D], positions int [N,S], mask bool [N,S,S] (query, key) -> hidden states [N,S,D]."""
    params = compute_params(params, cfg)
    return run_blocks(params, cfg, embeds, positions, lambda q, k, v, _: (attend(q, k, v, mask), None))[0]


def forward_packed(params: Params, cfg: ModelConfig, embeds: jax.Array, positions: jax.Array, record: jax.Array) -> jax.Array:
    """Rows of several sequences that do not see each other. embeds [R,W,D], positions int [R,W], record int [R,W] (one number per sequence of a row)
    -> hidden states [R,W,D]. params: in the type of the computation.
    """
    visible = (record[:, :, None] == record[:, None, :]) & jnp.tril(jnp.ones((record.shape[1],) * 2, bool))
    backend = flash.attention_backend(cfg, record.shape[1])

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return (attend(q, k, v, visible) if backend == "plain" else flash.flash_packed(q, k, v, record, visible, backend)), None

    return run_blocks(params, cfg, embeds, positions, attention)[0]


@jax.named_scope("prefill")
def prefill(params: Params, cfg: ModelConfig, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prompts tokens [B,P], mask [B,P] -> hidden of the last position [B,D], keys and values [L,B,P,Kv,Dh]."""
    visible, backend = causal_mask(mask), flash.attention_backend(cfg, tokens.shape[1])

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple[jax.Array, Any]:
        out = attend(q, k, v, visible) if backend == "plain" else flash.flash_group(q, k, v, mask, 0, backend)
        return out, (k, v)

    hidden, (k, v) = run_blocks(params, cfg, params["embed"][tokens], prompt_positions(mask), attention)
    return hidden[:, -1], k, v


@jax.named_scope("decode")
def decode_step(params: Params, cfg: ModelConfig, embeds: jax.Array, step: jax.Array, cache: GroupCache) -> tuple[jax.Array, GroupCache]:
    """One position for every completion. embeds [B,G,D] enter at completion position `step` -> hidden [B,G,D], cache with that column."""
    column = step - cache.start
    visible, positions = jnp.arange(cache.k.shape[3]) < column, (cache.prompt_len + step)[:, None]

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
        prompt_k, prompt_v, closed, *opened = layer
        past = [*((*part, None) for part in closed), (*opened, visible)]
        return attend_step(q, k, v, prompt_k, prompt_v, cache.prompt_mask, past), (k, v)

    extras = (cache.prompt_k, cache.prompt_v, cache.closed, cache.k, cache.v)
    hidden, (k, v) = run_blocks(params, cfg, embeds, positions, attention, extras)
    return hidden, write_step(cache, k, v, column)


def forward_group(
    params: Params, cfg: ModelConfig, prompt_tokens: jax.Array, prompt_mask: jax.Array, embeds: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Prompts once, and G completions that share them, in one pass.

    prompt_tokens [B,P], prompt_mask bool [B,P], embeds [B,G,T,D] -> hidden of the prompts' last position [B,D] and of the completions [B,G,T,D].
    Position-wise work runs on one [B, P + G*T] sequence; only the attention knows its structure.
    """
    (batch, p_len), (_, group, t_len, width) = prompt_tokens.shape, embeds.shape
    x = jnp.concatenate([params["embed"][prompt_tokens].astype(cfg.dtype), embeds.astype(cfg.dtype).reshape(batch, -1, width)], axis=1)
    completion = prompt_mask.sum(-1)[:, None] + jnp.tile(jnp.arange(t_len), group)
    positions = jnp.concatenate([prompt_positions(prompt_mask), completion], axis=1)
    visible = causal_mask(prompt_mask)
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((t_len, t_len), bool)), (1, 1, t_len, t_len))

    backend = flash.attention_backend(cfg, p_len + t_len)

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple[jax.Array, None]:
        if backend != "plain":
            return flash.flash_group(q, k, v, prompt_mask, group, backend), None

        def completions(x: jax.Array) -> jax.Array:
            return x[:, p_len:].reshape(batch, group, t_len, *x.shape[2:])

        prompt_k, prompt_v = k[:, :p_len], v[:, :p_len]
        prompt_out = attend(q[:, :p_len], prompt_k, prompt_v, visible)
        out = attend_group(completions(q), completions(k), completions(v), prompt_k, prompt_v, prompt_mask, causal)
        return jnp.concatenate([prompt_out, out.reshape(batch, group * t_len, *out.shape[3:])], axis=1), None

    hidden, _ = run_blocks(params, cfg, x, positions, attention)
    return hidden[:, p_len - 1], hidden[:, p_len:].reshape(batch, group, t_len, width)
