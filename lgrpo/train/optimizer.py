"""AdamW from the config: warm-up, schedule, clipping, frozen tables."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lgrpo.config import OptimConfig
from lgrpo.types import Params


def learning_rate(cfg: OptimConfig, total_updates: int) -> optax.Schedule:
    """Linear warm-up to cfg.lr, then constant or cosine to 0. Counts real updates: skipped ones do not advance it.

    Update t < warmup, from 0, has the rate lr (t + 1) / warmup: none is spent at rate 0.
    """
    decay = optax.cosine_decay_schedule(cfg.lr, max(total_updates - cfg.warmup, 1))
    after = decay if cfg.schedule == "cosine" else optax.constant_schedule(cfg.lr)
    if not cfg.warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(cfg.lr / cfg.warmup, cfg.lr, max(cfg.warmup - 1, 1)), after], [cfg.warmup])


# Stacked norms and biases are [L, ...]: they are vectors per layer whatever their rank.
_VECTORS = ("attn_norm", "mlp_norm", "bq", "bk", "bv", "q_norm", "k_norm")
_OTHER_PART = {"encoder": "decoder", "decoder": "encoder"}


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(key.key for key in path)


def trainable(params: Params, cfg: OptimConfig, stage: str = "explicit") -> Any:
    """Tree of bools: False for the tables that the config freezes (the encoder's own table is none of them), for the other half in the encoder and
    decoder phases of stage 1, and, where there are adapters, for all but these and the compress vector."""
    frozen_tables = {"embed": cfg.freeze_embed, "unembed": cfg.freeze_unembed}

    def moves(path: tuple[Any, ...], _: Any) -> bool:
        names = _names(path)
        if _OTHER_PART.get(stage) in names:
            return False
        if "adapters" in params:
            return names[0] == "adapters" or names[-1] == "compress"
        return "encoder" in names or not frozen_tables.get(names[-1], False)

    return jax.tree.map_with_path(moves, params)


def split(params: Params, cfg: OptimConfig, stage: str = "explicit") -> tuple[Params, Params]:
    """`params` as what is trained and what is frozen, each with None where the other has a leaf. Gradients are taken in the first alone, so that what is
    frozen costs no backward pass, no gradient and no moments."""
    moves = trainable(params, cfg, stage)
    return tuple(jax.tree.map(lambda x, m, want=want: x if m == want else None, params, moves) for want in (True, False))


def join(moving: Params, frozen: Params) -> Params:
    """The inverse of split."""
    return jax.tree.map(lambda x, y: y if x is None else x, moving, frozen, is_leaf=lambda x: x is None)


def norm_in_float32(tree: Params) -> jax.Array:
    """Global norm, float32 []. Squares of bfloat16 numbers would be added up in bfloat16."""
    return optax.global_norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))


def make_optimizer(cfg: OptimConfig, moving: Params) -> optax.GradientTransformation:
    """AdamW on the trained part of the parameters (`split`), for its state: moments and counts. What it does to the weights is `moved`."""
    # The names and places of stored moments are those of this tree; neither rate nor decay is in them, and of the two groups only the first has any.
    adamw = optax.adamw(optax.constant_schedule(cfg.lr), cfg.b1, cfg.b2, cfg.eps, mask=jax.tree.map(lambda _: True, moving))
    labels = jax.tree.map(lambda _: "train", moving)
    return optax.partition({"train": optax.chain(optax.identity(), adamw), "freeze": optax.set_to_zero()}, labels)


def _adam(opt_state: optax.OptState) -> optax.ScaleByAdamState:
    """Moments, and the count of updates that moved the weights."""
    states = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    return next(x for x in states if isinstance(x, optax.ScaleByAdamState))


def last_rate(opt_state: optax.OptState, cfg: OptimConfig, total_updates: int) -> jax.Array:
    """Learning rate of the last update that moved the weights, of the first one before there is any."""
    return jnp.asarray(learning_rate(cfg, total_updates)(jnp.maximum(_adam(opt_state).count - 1, 0)))


def moved(moving: Params, opt_state: optax.OptState, cfg: OptimConfig, total_updates: int) -> Params:
    """`moving` after the update whose moments are in opt_state already. Weight decay on matrices only.

    From the new moments, not beside them: a compiler that forms both in one go keeps the old moments until the weights are done, which is a copy of
    all of them.
    """
    adam = _adam(opt_state)
    first, second = (optax.tree.bias_correction(m, b, adam.count) for m, b in ((adam.mu, cfg.b1), (adam.nu, cfg.b2)))
    rate = last_rate(opt_state, cfg, total_updates)

    def new(path: tuple[Any, ...], x: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        step = m / (jnp.sqrt(v) + cfg.eps)
        if x.ndim > 1 and _names(path)[-1] not in _VECTORS:
            step = step + cfg.weight_decay * x
        return (x - rate.astype(step.dtype) * step).astype(x.dtype)

    return jax.tree.map_with_path(new, moving, first, second)
