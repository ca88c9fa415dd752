"""Products of activations and weights in the form that each backend computes fast.

XLA on CPU uses the processor's instructions for bfloat16 (AVX512_BF16, AMX) in products whose result is float32 and whose factors are contracted as
they lie in memory: the left one along its last axis, the right one along its first. Any other product of bfloat16 it computes in float32. Sums are
float32 in both, and results are rounded to bfloat16 here as there. docs/performance.md has what it gains.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lgrpo.sharding import platform

SAVED = "product"
"""Name of every result, for the policy of what a backward pass keeps."""


def by_instruction(dtype: jnp.dtype) -> bool:
    """One CPU in bfloat16. On simulated devices a copy along a sharded axis would gather it."""
    return dtype == jnp.bfloat16 and platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [M,D] times weight [D,F] -> [M,F], both of the type of the computation, in which the result is too."""
    return checkpoint_name(_rounded(x, weight) if by_instruction(x.dtype) else x @ weight, SAVED)


def transposed(x: jax.Array) -> jax.Array:
    """x [A,B] -> [B,A], for a product: a copy where another way of reading x would be computed in float32."""
    if not by_instruction(x.dtype):
        return x.T
    # XLA makes a plain transpose a way of reading. What was gathered lies in memory as it is read.
    return jnp.take(x.T, jnp.arange(x.shape[1]), axis=0, mode="clip")


def across(x: jax.Array) -> jax.Array | None:
    """x [A,B] -> [B,A], for a loop that multiplies by it or gathers its rows: on a CPU a copy that is made before the loop. None elsewhere.

    There the transpose is part of what the loop does, and would be one more array before it. On a CPU a product that reads through it is slower, and
    a gather takes a cache line for each number of a row.
    """
    if platform() != "cpu":
        return None
    # XLA gives the result of a barrier the default layout: a way of reading is copied once, and what lies by rows already is not.
    return jax.lax.optimization_barrier(transposed(x))


def _wide(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32).astype(x.dtype)


@jax.custom_vjp
def _rounded(x: jax.Array, weight: jax.Array) -> jax.Array:
    return _wide(x, weight)


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _wide(x, weight), (x, weight)


def _backward(kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = kept
    return _wide(grad, transposed(weight)), _wide(transposed(x), grad)


_rounded.defvjp(_forward, _backward)
