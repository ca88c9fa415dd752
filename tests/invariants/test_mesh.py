"""One device or eight, in any arrangement: the same samples and the same gradient. Breaks when a sharding rule changes the mathematics."""

import functools

import jax
import numpy as np
import pytest
from support import END, assert_rounding, change, first_moments, fresh_state, params, prompts, tiny

from lgrpo.config import MeshConfig
from lgrpo.models.spec import param_shardings
from lgrpo.sharding import make_mesh, put_batch
from lgrpo.train.setup import publish, state_shardings
from lgrpo.train.steps.rl import group, make_train_batch, rollout_step, train_step

CFG = tiny(rollout__group_size=2, rollout__max_new_tokens=5, rollout__latent__max_latent=2, optim__clip_norm=1e9, train__prompts_per_step=8)
CFG = change(CFG, train__diagnostics="off")


@functools.cache
def one_step(data, fsdp, tensor):
    """Rollout and first update as the training loop runs them."""
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params(CFG.model), param_shardings(CFG.model, mesh))
        record = rollout_step(publish(placed, CFG, mesh), put_batch(prompts(8), mesh), jax.random.key(0), cfg=CFG)
        record = jax.device_get(record)
        rng = np.random.default_rng(0)
        rewards, valid = rng.integers(0, 2, (8, 2)).astype(np.float32), np.ones((8, 2), bool)
        experience = put_batch((prompts(8), group(record, 2), rewards, valid), mesh)
        batch = make_train_batch(*experience, cfg=CFG)
        state = jax.device_put(fresh_state(CFG), state_shardings(CFG, mesh, rl=True))
        state, metrics = train_step(state, batch, cfg=CFG)
        return record, first_moments(state), jax.device_get(metrics)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=["data 8", "fsdp 8", "2 x 2 x 2"])
def test_mesh_does_not_matter(sizes):
    record, grads, metrics = one_step(1, 1, 1)
    other, other_grads, other_metrics = one_step(*sizes)
    assert (record.tokens == END).any() and record.is_latent.any()
    for name in ("ids", "mask", "is_latent", "finish"):
        np.testing.assert_array_equal(getattr(other, name), getattr(record, name), err_msg=name)
    assert_rounding(other.logps, record.logps)
    assert other_metrics["policy/replay_gap"] < 1e-4
    assert metrics["grad/norm"] > 1e-2
    for path, x in grads.items():
        np.testing.assert_allclose(other_grads[path], x, atol=1e-5, rtol=1e-4, err_msg=path)
