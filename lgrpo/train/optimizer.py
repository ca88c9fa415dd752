"""AdamW from the config: warm-up, schedule, clipping, frozen tables."""

from __future__ import annotations

from typing import Any

import jax
import optax

from lgrpo.config import OptimConfig
from lgrpo.types import Params


def learning_rate(cfg: OptimConfig, total_updates: int) -> optax.Schedule:
    """Linear warm-up to cfg.lr, then constant or cosine to 0. Counts real updates: skipped ones do not advance it."""
    decay = optax.cosine_decay_schedule(cfg.lr, max(total_updates - cfg.warmup, 1))
    after = decay if cfg.schedule == "cosine" else optax.constant_schedule(cfg.lr)
    if not cfg.warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, cfg.lr, cfg.warmup), after], [cfg.warmup])


def trainable(params: Params, cfg: OptimConfig) -> Any:
    """Tree of bools: False for the embedding and unembedding tables that the config freezes."""
    frozen = {"embed": cfg.freeze_embed, "unembed": cfg.freeze_unembed}
    return {name: jax.tree.map(lambda _, name=name: not frozen.get(name, False), sub) for name, sub in params.items()}


def make_optimizer(cfg: OptimConfig, params: Params, total_updates: int) -> optax.GradientTransformation:
    """Frozen leaves get no update, no moments and no share in the clipped norm. Weight decay on matrices only."""
    decayed = jax.tree.map(lambda x: x.ndim > 1, params)
    # Stacked norms and biases are [L, ...]: they are vectors per layer whatever their rank.
    for name in ("attn_norm", "mlp_norm", "bq", "bk", "bv"):
        if name in decayed["blocks"]:
            decayed["blocks"][name] = False
    adamw = optax.adamw(learning_rate(cfg, total_updates), cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay, mask=decayed)
    labels = jax.tree.map(lambda t: "train" if t else "freeze", trainable(params, cfg))
    return optax.partition({"train": optax.chain(optax.clip_by_global_norm(cfg.clip_norm), adamw), "freeze": optax.set_to_zero()}, labels)
