"""The parameter table: one declaration per tensor drives init, abstract shapes, sharding, restore and Hugging Face names."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lgrpo.config import ModelConfig
from lgrpo.sharding import TRAIN_RULES, partition_spec
from lgrpo.types import Params


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One tensor. `hf` is the Hugging Face name, with {layer} for stacked tensors (their first axis is the layer).

    hf_inputs: number of axes, after that of the layer, that are inputs of a projection; Hugging Face stores it as [outputs, inputs].
    0: stored as it is, apart from the layer.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Literal["normal", "ones", "zeros"]
    hf: str
    fan_in: int = 1
    hf_inputs: int = 0


def param_specs(cfg: ModelConfig) -> dict[str, Any]:
    """Nested dict of ParamSpec with the structure of the parameters."""
    layers, width, ff = cfg.n_layers, cfg.d_model, cfg.d_ff
    heads, kv_heads, head_dim = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    prefix = "model.layers.{layer}."

    def matrix(shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int, hf: str, inputs: int = 1) -> ParamSpec:
        return ParamSpec((layers, *shape), ("layers", *axes), "normal", prefix + hf + ".weight", fan_in, inputs)

    def vector(shape: tuple[int, ...], axes: tuple[str, ...], init: Literal["ones", "zeros"], hf: str) -> ParamSpec:
        return ParamSpec((layers, *shape), ("layers", *axes), init, prefix + hf)

    blocks = {
        "attn_norm": vector((width,), ("norm",), "ones", "input_layernorm.weight"),
        "wq": matrix((width, heads, head_dim), ("embed", "heads", "head_dim"), width, "self_attn.q_proj"),
        "wk": matrix((width, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), width, "self_attn.k_proj"),
        "wv": matrix((width, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), width, "self_attn.v_proj"),
        "wo": matrix((heads, head_dim, width), ("heads", "head_dim", "embed"), heads * head_dim, "self_attn.o_proj", 2),
        "mlp_norm": vector((width,), ("norm",), "ones", "post_attention_layernorm.weight"),
        "w_gate": matrix((width, ff), ("embed", "mlp"), width, "mlp.gate_proj"),
        "w_up": matrix((width, ff), ("embed", "mlp"), width, "mlp.up_proj"),
        "w_down": matrix((ff, width), ("mlp", "embed"), ff, "mlp.down_proj"),
    }
    if cfg.family == "qwen2":
        blocks["bq"] = vector((heads, head_dim), ("heads", "head_dim"), "zeros", "self_attn.q_proj.bias")
        blocks["bk"] = vector((kv_heads, head_dim), ("kv_heads", "head_dim"), "zeros", "self_attn.k_proj.bias")
        blocks["bv"] = vector((kv_heads, head_dim), ("kv_heads", "head_dim"), "zeros", "self_attn.v_proj.bias")
    if cfg.family == "qwen3":
        blocks["q_norm"] = vector((head_dim,), ("norm",), "ones", "self_attn.q_norm.weight")
        blocks["k_norm"] = vector((head_dim,), ("norm",), "ones", "self_attn.k_norm.weight")
    specs = {
        "embed": ParamSpec((cfg.vocab_size, width), ("vocab", "embed"), "normal", "model.embed_tokens.weight", width),
        "blocks": blocks,
        "final_norm": ParamSpec((width,), ("norm",), "ones", "model.norm.weight"),
    }
    if not cfg.tie_embeddings:
        specs["unembed"] = ParamSpec((width, cfg.vocab_size), ("embed", "vocab"), "normal", "lm_head.weight", width, 1)
    return specs


def _is_spec(x: Any) -> bool:
    return isinstance(x, ParamSpec)


def spec_shardings(specs: Any, mesh: Mesh, rules: dict[str, str | None] = TRAIN_RULES) -> Any:
    """NamedSharding of every tensor of a spec tree. Errors: ValueError naming the tensor whose axis does not divide."""
    return jax.tree.map_with_path(
        lambda path, s: NamedSharding(mesh, partition_spec(jax.tree_util.keystr(path), s.shape, s.axes, rules, mesh)),
        specs,
        is_leaf=_is_spec,
    )


def spec_abstract(specs: Any, cfg: ModelConfig, shardings: Any = None) -> Params:
    """ShapeDtypeStructs of a spec tree, in the type of cfg's parameters; allocates nothing."""
    dtype = jnp.dtype(cfg.param_dtype)
    if shardings is None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), specs, is_leaf=_is_spec)
    return jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, dtype, sharding=sh), specs, shardings, is_leaf=_is_spec)


def spec_init(specs: Any, cfg: ModelConfig, key: jax.Array) -> Params:
    """Random tensors of a spec tree: normal with deviation init_scale / sqrt(fan_in), ones for norms, zeros for biases."""
    dtype = jnp.dtype(cfg.param_dtype)
    leaves, treedef = jax.tree.flatten(specs, is_leaf=_is_spec)

    def make(index: int, spec: ParamSpec) -> jax.Array:
        if spec.init == "normal":
            noise = jax.random.normal(jax.random.fold_in(key, index), spec.shape, jnp.float32)
            return (noise * (cfg.init_scale / spec.fan_in**0.5)).astype(dtype)
        return (jnp.ones if spec.init == "ones" else jnp.zeros)(spec.shape, dtype)

    return jax.tree.unflatten(treedef, [make(i, s) for i, s in enumerate(leaves)])


def param_shardings(cfg: ModelConfig, mesh: Mesh, rules: dict[str, str | None] = TRAIN_RULES) -> Any:
    """NamedSharding of every parameter. Errors: ValueError naming the tensor whose axis does not divide."""
    return spec_shardings(param_specs(cfg), mesh, rules)


def abstract_params(cfg: ModelConfig, shardings: Any = None) -> Params:
    """ShapeDtypeStructs of the parameters; allocates nothing."""
    return spec_abstract(param_specs(cfg), cfg, shardings)


def init_params(cfg: ModelConfig, key: jax.Array) -> Params:
    """Random parameters: normal with deviation init_scale / sqrt(fan_in), ones for norms, zeros for biases."""
    return spec_init(param_specs(cfg), cfg, key)


def largest_array(specs: Any, cfg: ModelConfig) -> int:
    """Bytes of the largest tensor of a spec tree, whole."""
    return max(x.size * x.dtype.itemsize for x in jax.tree.leaves(spec_abstract(specs, cfg)))


def count_params(cfg: ModelConfig) -> int:
    """Number of weights."""
    return sum(x.size for x in jax.tree.leaves(abstract_params(cfg)))
