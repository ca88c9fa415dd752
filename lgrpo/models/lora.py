"""Low-rank adapters on the parameter table. An adapted model is {"base": frozen parameters, "adapters": {matrix: {"a", "b"}}}.

The model knows nothing of adapters: `merge` makes ordinary weights, W + (alpha / r) a b, once per update, and the forward pass runs on these.
That costs r / (tokens of the update) of the forward pass, keeps every fast path, and makes merging on export the same function as training. The
price is dropout: it drops input features of an adapter for all tokens of an update together (of a matrix and layer each), not per token.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lgrpo.models.spec import ParamSpec
from lgrpo.types import Params

MATRICES = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


def _input_axes(spec: ParamSpec) -> int:
    """Number of axes after the layer axis that a matrix sums over: those whose sizes multiply to fan_in."""
    for count in range(1, len(spec.shape) - 1):
        if math.prod(spec.shape[1 : 1 + count]) == spec.fan_in:
            return count
    raise ValueError(f"{spec.hf}: no leading axes of {spec.shape} multiply to fan_in={spec.fan_in}")


def adapter_specs(specs: dict[str, Any], rank: int) -> dict[str, Any]:
    """Specs of the adapters of a model (or of a dict of models: encoder and decoder), in the same nesting."""
    if "blocks" not in specs:
        return {name: adapter_specs(sub, rank) for name, sub in specs.items()}
    found = {}
    for name in MATRICES:
        spec = specs["blocks"][name]
        cut = 1 + _input_axes(spec)
        a = ParamSpec((*spec.shape[:cut], rank), (*spec.axes[:cut], "rank"), "normal", "", spec.fan_in)
        b = ParamSpec((spec.shape[0], rank, *spec.shape[cut:]), (spec.axes[0], "rank", *spec.axes[cut:]), "zeros", "", rank)
        found[name] = {"a": a, "b": b}
    return found


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a [L, *in, r], b [L, r, *out] -> [L, *in, *out]."""
    layers, rank = b.shape[:2]
    flat = jnp.einsum("lir,lro->lio", a.reshape(layers, -1, rank), b.reshape(layers, rank, -1))
    return flat.reshape(*a.shape[:-1], *b.shape[2:])


def merge(base: Params, adapters: Params, scale: float, *, dropout: float = 0.0, key: jax.Array | None = None) -> Params:
    """Ordinary weights in the structure of `base`. scale: alpha / rank.

    With dropout > 0, `key` draws which input features are left out (training only). Errors: ValueError for dropout without a key.
    """
    if dropout and key is None:
        raise ValueError("lora: dropout needs a key; merge for evaluation and export with dropout=0")
    if "blocks" not in base:
        keys = {name: None if key is None else jax.random.fold_in(key, i) for i, name in enumerate(sorted(base))}
        return {name: merge(sub, adapters[name], scale, dropout=dropout, key=keys[name]) for name, sub in base.items()}
    blocks = dict(base["blocks"])
    for index, name in enumerate(MATRICES):
        a, b = adapters[name]["a"], adapters[name]["b"]
        if dropout:
            kept = jax.random.bernoulli(jax.random.fold_in(key, index), 1 - dropout, (*a.shape[:-1], 1))
            a = jnp.where(kept, a / (1 - dropout), 0.0)
        blocks[name] = blocks[name] + (scale * _product(a, b)).astype(blocks[name].dtype)
    return base | {"blocks": blocks}
