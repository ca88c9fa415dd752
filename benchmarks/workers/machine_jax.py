"""What XLA reaches on this machine: matrix product and copy. args: size, megabytes, repeats."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import alternate


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a float32 matrix product and of an elementwise pass (read and write) into a donated buffer."""
    size, count = args["size"], args["megabytes"] * 2**20 // 4
    a = jax.random.normal(jax.random.key(0), (size, size))
    state = {"x": jnp.zeros(count)}
    product, add = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1, donate_argnums=0)

    def copy() -> None:
        state["x"] = jax.block_until_ready(add(state["x"]))

    parts = alternate({"matmul": lambda: jax.block_until_ready(product(a, a)), "copy": copy}, args["repeats"])
    return {"parts": parts, "flop": 2 * size**3, "bytes": 8 * count}
