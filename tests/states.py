"""States of a run without a model, for the tests of checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lgrpo.config import CheckpointConfig, ExperimentConfig
from lgrpo.runs.checkpoint import Checkpoints
from lgrpo.types import TrainState

CFG = ExperimentConfig()
KEEP = CheckpointConfig(keep=2, keep_best=True)


def make_state(step=3, width=8, reference=False, dtype=jnp.float32):
    key = jax.random.fold_in(jax.random.key(0), step)
    params = {
        "embed": jax.random.normal(key, (16, width)).astype(dtype),
        "blocks": {"wq": jax.random.normal(key, (2, width, 4)).astype(dtype), "norm": jnp.full((2, width), float(step), dtype)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state=optimizer.init(params),
        nonfinite=jnp.int32(1),
        skipped=jnp.int32(2),
        reference=jax.tree.map(lambda x: x + 1, params) if reference else None,
    )


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def save(ckpt, step, metric=None, cfg=CFG, buffer=None, state=None, **extra):
    ckpt.save(
        step,
        state=make_state(step) if state is None else state,
        data={"position": step},
        buffer=buffer,
        cfg=cfg,
        extra=extra,
        metric=metric,
    )


def restored(workdir):
    ckpt = Checkpoints(workdir, KEEP)
    try:
        return ckpt.restore(make_state(), None, CFG)
    finally:
        ckpt.close()
