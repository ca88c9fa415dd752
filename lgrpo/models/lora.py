"""Low-rank adapters on the parameter table. An adapted model is {"base": frozen parameters, "adapters": {matrix: {"a", "b"}}}.

The model knows next to nothing of adapters: its layers run on ordinary weights, W + (alpha / r) a b. `merge` makes all of them (for a rollout, for
export), `attach` leaves it to the loop over layers to make those of one layer at a time, so that training holds neither merged weights nor their
gradient besides the base. That costs r / (tokens of a pass) of the forward pass and keeps every fast path. The price is dropout: it drops input
features of an adapter for all tokens of an update together (of a matrix and layer each), not per token.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lgrpo.models.spec import ParamSpec
from lgrpo.types import Array, Params

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


@struct.dataclass
class LowRank:
    """A matrix W + scale a b that is not yet one number each: of all layers (leading axis L), or inside the loop over layers of one."""

    base: Array  # [*in, *out]
    a: Array  # [*in, r]
    b: Array  # [r, *out]
    scale: float = struct.field(pytree_node=False)

    def merged(self) -> jax.Array:
        """The matrix of one layer, in the type of the base."""
        rank = self.a.shape[-1]
        # With a batch axis it is none of the products that run_blocks keeps for the backward pass: it is as large as the base.
        low = (self.a.reshape(1, -1, rank) @ self.b.reshape(1, rank, -1)).reshape(self.base.shape)
        return self.base + (self.scale * low).astype(self.base.dtype)


def is_low_rank(x: Any) -> bool:
    """For tree functions that stop at adapted matrices."""
    return isinstance(x, LowRank)


def merge(base: Params, adapters: Params, scale: float) -> Params:
    """Ordinary weights in the structure of `base`, without dropout. scale: alpha / rank."""
    attached = attach(base, adapters, scale)
    return jax.tree.map(lambda x: jax.vmap(LowRank.merged)(x) if is_low_rank(x) else x, attached, is_leaf=is_low_rank)


def attach(base: Params, adapters: Params, scale: float, *, dropout: float = 0.0, key: jax.Array | None = None) -> Params:
    """`base` with LowRank in place of every adapted matrix: weights for decoder.run_blocks. scale: alpha / rank.

    With dropout > 0, `key` draws which input features are left out (training only). Errors: ValueError for dropout without a key.
    """
    if dropout and key is None:
        raise ValueError("lora: dropout needs a key; evaluation and export are without it")
    if "blocks" not in base:
        keys = {name: None if key is None else jax.random.fold_in(key, i) for i, name in enumerate(sorted(base))}
        return {name: attach(sub, adapters[name], scale, dropout=dropout, key=keys[name]) for name, sub in base.items()}
    blocks = dict(base["blocks"])
    for index, name in enumerate(MATRICES):
        a, b = adapters[name]["a"], adapters[name]["b"]
        if dropout:
            kept = jax.random.bernoulli(jax.random.fold_in(key, index), 1 - dropout, (*a.shape[:-1], 1))
            a = jnp.where(kept, a / (1 - dropout), 0.0)
        blocks[name] = LowRank(blocks[name], a, b, scale)
    return base | {"blocks": blocks}
