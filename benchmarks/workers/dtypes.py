"""float32 and bfloat16 on this machine, taking turns: products by size, a rollout, value and gradient of an update with frozen tables, and the largest
difference between replayed and sampled log-probs. args: a Shape, repeats. Prints `parts`; the sizes of products are those of SmolLM2-135M.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.shapes import shape_of
from benchmarks.timing import alternate
from benchmarks.workers.common import experiment, params_of, prompt_batch
from lgrpo.latent.replay import replay_logps
from lgrpo.models.decoder import compute_params
from lgrpo.train.optimizer import join, split
from lgrpo.train.steps.rl import group, rollout_step
from lgrpo.types import Params, Rollout

TYPES = ("float32", "bfloat16")
PRODUCTS = {"blocks": (1888, 576, 1536), "blocks, a decode step": (64, 576, 1536), "vocabulary": (1280, 576, 49280)}
SUMS = {"": None, ", result in float32": jnp.float32}
"""A product of bfloat16 gives bfloat16, as in the blocks, or float32, as for logits."""


def _product(sizes: tuple[int, int, int], dtype: str, result: Any) -> Callable[[], Any]:
    rows, inner, columns = sizes
    x, y = (jax.random.normal(jax.random.key(i), s).astype(dtype) for i, s in enumerate(((rows, inner), (inner, columns))))
    times = max(1, int(1e10 / (2 * rows * inner * columns)))
    product = jax.jit(partial(jnp.matmul, preferred_element_type=result))
    return lambda: jax.block_until_ready([product(x, y) for _ in range(times)][-1])


def _steps(args: dict[str, Any], dtype: str) -> tuple[dict[str, Callable[[], Any]], Callable[[], float]]:
    """(rollout and update, the largest difference of log-probs after both)."""
    shape = shape_of(args)
    frozen = {f"optim.freeze_{name}": True for name in ("embed", "unembed")}
    cfg = experiment(shape, "exact", diff=frozen | {"model.dtype": dtype})
    params, prompts, kept = params_of(shape), prompt_batch(shape), {}
    weights = compute_params(params, cfg.model)
    moving, fixed = split(params, cfg.optim)

    @jax.jit
    def gradient(moving: Params, record: Rollout) -> Any:
        def loss(moving: Params) -> Any:
            logps = replay_logps(join(moving, fixed), prompts, record, cfg=cfg)
            return jnp.where(record.mask, logps, 0.0).sum(), jnp.abs(jnp.where(record.mask, logps - record.logps, 0.0)).max()

        return jax.value_and_grad(loss, has_aux=True)(moving)

    def roll() -> None:
        kept["record"] = jax.block_until_ready(group(rollout_step(weights, prompts, jax.random.key(1), cfg=cfg), shape.group))

    def update() -> None:
        kept["gap"] = jax.block_until_ready(gradient(moving, kept["record"]))[0][1]

    return {f"rollout, {dtype}": roll, f"update, {dtype}": update}, lambda: float(kept["gap"])


def run(args: dict[str, Any]) -> dict[str, Any]:
    """parts by name and type, and replay_gap by type."""
    work = {
        f"product of {name}{text}, {dtype}": _product(sizes, dtype, result)
        for name, sizes in PRODUCTS.items()
        for text, result in SUMS.items()
        for dtype in TYPES
    }
    steps = {dtype: _steps(args, dtype) for dtype in TYPES}
    for own, _ in steps.values():
        work |= own
    return {"parts": alternate(work, args["repeats"]), "replay_gap": {dtype: gap() for dtype, (_, gap) in steps.items()}}
