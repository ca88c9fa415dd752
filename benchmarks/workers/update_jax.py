"""Update by plain JAX: a textbook Llama on tiled prompts with the full logits of the completion. Uses nothing of lgrpo. args: a Shape, frozen
(both tables), repeats."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.shapes import Shape, completions, prompt_tokens, random_weights, shape_of
from benchmarks.timing import Kept, measure

Params = dict[str, Any]


def _norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def _rope(x: jax.Array, theta: float) -> jax.Array:
    """x [N,S,H,Dh] at positions 0..S-1."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _layer(x: jax.Array, p: Params, shape: Shape) -> jax.Array:
    h = _norm(x, p["attn_norm"], shape.rms_eps)
    q, k, v = (jnp.einsum("nsd,dhk->nshk", h, p[name]) for name in ("wq", "wk", "wv"))
    out = jax.nn.dot_product_attention(_rope(q, shape.rope_theta), _rope(k, shape.rope_theta), v, is_causal=True)
    x = x + jnp.einsum("nshk,hkd->nsd", out, p["wo"])
    h = _norm(x, p["mlp_norm"], shape.rms_eps)
    return x + (jax.nn.silu(h @ p["w_gate"]) * (h @ p["w_up"])) @ p["w_down"]


def loss_of(params: Params, prompts: jax.Array, data: dict[str, jax.Array], shape: Shape) -> jax.Array:
    """Token mean of the clipped loss on every completion position."""
    table = params["embed"]
    mixtures = sum(data["weights"][:, :-1, k, None] * table[data["ids"][:, :-1, k]] for k in range(shape.k))
    x = jnp.concatenate([table[jnp.repeat(prompts, shape.group, axis=0)], mixtures], axis=1)
    x, _ = jax.lax.scan(lambda x, p: (_layer(x, p, shape), None), x, params["blocks"])
    hidden = _norm(x[:, -shape.new :], params["final_norm"], shape.rms_eps)
    logps = jnp.take_along_axis(jax.nn.log_softmax(hidden @ params["unembed"], axis=-1), data["ids"], axis=-1)
    margin = data["scores"] - logps
    ratio = jnp.exp(jnp.clip((-margin - jnp.exp(-margin)).mean(-1) - data["old_logps"], -20.0, 20.0))
    advantages = data["advantages"]
    worst = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 0.8, 1.2))
    return jnp.where(advantages < 0, jnp.minimum(worst, -3.0 * advantages), worst).mean()


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of value_and_grad over the whole batch."""
    shape = shape_of(args)
    params = jax.tree.map(jnp.asarray, random_weights(shape))
    batch = jax.tree.map(jnp.asarray, (prompt_tokens(shape), completions(shape)))

    @jax.jit
    def update(moving: Params, fixed: Params, prompts: jax.Array, data: dict[str, jax.Array]) -> Any:
        value, grads = jax.value_and_grad(lambda moving: loss_of(moving | fixed, prompts, data, shape))(moving)
        return value, jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads))), grads

    fixed = {name: params.pop(name) for name in ("embed", "unembed") if args.get("frozen", False)}
    work = Kept(lambda: jax.block_until_ready(update(params, fixed, *batch)))
    found = measure(work, args["repeats"])
    value, norm, _ = work.last
    return found | {"tokens": shape.tokens, "loss": float(value), "grad_norm": float(norm)}
