"""The update as optax writes it: clip, AdamW with its schedule and decay, and steps that are left out. Breaks when our way of writing it in place drifts."""

import jax
import numpy as np
import optax
import pytest
from support import assert_rounding, change, fresh_state, tiny

from lgrpo.train.optimizer import learning_rate, split
from lgrpo.train.steps.update import apply_update

UPDATES = 7
CFG = tiny(model__n_layers=1, train__num_steps=UPDATES, optim__weight_decay=0.3, optim__b2=0.9, optim__lr=3e-2, optim__warmup=2)
_UPDATE = jax.jit(apply_update, static_argnames=("cfg", "total"))


def gradients(moving, seed, scale):
    leaves, tree = jax.tree.flatten(moving)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [scale * rng.standard_normal(x.shape).astype(np.float32) for x in leaves])


def oracle(cfg, moving):
    """Decay on matrices only: norms and biases, whose layers are stacked, are told by their names."""
    decayed = jax.tree.map_with_path(lambda path, x: x.ndim > 1 and not path[-1].key.endswith("norm") and path[-1].key[0] != "b", moving)
    o = cfg.optim
    adamw = optax.adamw(learning_rate(o, UPDATES), o.b1, o.b2, o.eps, weight_decay=o.weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(o.clip_norm), adamw)


@pytest.mark.parametrize(("schedule", "clip", "scale"), [("cosine", 1.0, 1.0), ("constant", 1e9, 1e-3), ("cosine", 1.0, 1e-6)])
def test_updates_are_those_of_optax(schedule, clip, scale):
    """With a gradient in the middle that is not finite, and an update of nothing: both leave no trace."""
    cfg = change(CFG, optim__schedule=schedule, optim__clip_norm=clip)
    state = fresh_state(cfg)
    wanted, _ = split(jax.device_get(state.params), cfg.optim)
    optimizer = oracle(cfg, wanted)
    follow = jax.jit(optimizer.update)  # op by op it takes a minute
    apply, moments = jax.jit(optax.apply_updates), jax.jit(optimizer.init)(wanted)
    for at in range(UPDATES):
        grads = gradients(wanted, at, scale)
        if at in (2, 4):
            bad = jax.tree.map(lambda g: g * np.float32(np.nan), grads) if at == 2 else grads
            state, _ = _UPDATE(state, bad, cfg=cfg, total=UPDATES, count=np.float32(3.0), empty=np.bool_(at == 4))
            continue
        changes, moments = follow(grads, moments, wanted)
        wanted = apply(wanted, changes)
        sums = jax.tree.map(lambda g: g * np.float32(3.0), grads)
        state, metrics = _UPDATE(state, sums, cfg=cfg, total=UPDATES, count=np.float32(3.0), empty=np.bool_(False))
        assert metrics["grad/norm"].value() == pytest.approx(float(optax.global_norm(grads)), rel=1e-5)
    assert (int(state.nonfinite), int(state.skipped)) == (0, 1)
    found, _ = split(jax.device_get(state.params), cfg.optim)
    assert_rounding(found, jax.device_get(wanted), units=64, size=1.0)
