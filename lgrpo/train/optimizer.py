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


def _clip(limit: float) -> optax.GradientTransformation:
    """optax.clip_by_global_norm with the norm in float32."""

    def clip(updates: Params, _: Params | None) -> Params:
        norm = norm_in_float32(updates)
        return jax.tree.map(lambda x: jnp.where(norm < limit, x, (x / norm.astype(x.dtype)) * limit), updates)

    return optax.stateless(clip)


def make_optimizer(cfg: OptimConfig, moving: Params, total_updates: int) -> optax.GradientTransformation:
    """AdamW on the trained part of the parameters (`split`). Weight decay on matrices only."""
    decayed = jax.tree.map_with_path(lambda path, x: x.ndim > 1 and _names(path)[-1] not in _VECTORS, moving)
    adamw = optax.adamw(learning_rate(cfg, total_updates), cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay, mask=decayed)
    # The two groups are in the names of stored moments; nothing is in the second any more.
    labels = jax.tree.map(lambda _: "train", moving)
    return optax.partition({"train": optax.chain(_clip(cfg.clip_norm), adamw), "freeze": optax.set_to_zero()}, labels)
