"""Slot refill gives the samples of the plain loop. Breaks when a lane starts, ends or records a sample at the wrong place, or sees another's past."""

import jax
import numpy as np
import pytest
from support import EOS, assert_rounding, params, prompts, roll, tiny

from lgrpo.config import MeshConfig
from lgrpo.latent.laws.gaussian import Gaussian
from lgrpo.latent.refill import refill_rollout
from lgrpo.models.spec import param_shardings
from lgrpo.sharding import ROLLOUT_RULES, make_mesh, put_batch

SMALL = {"rollout__group_size": 6, "rollout__max_new_tokens": 9, "rollout__chunk": 4}
CASES = {
    "latent": {"rollout__latent__max_latent": 3},
    "gaussian": {"rollout__latent__max_latent": 3, "rollout__latent__law": Gaussian(sigma=0.5)},
    "explicit": {"rollout__mode": "explicit", "rollout__latent__k": 1},
}


def same(other, record):
    for name in ("ids", "mask", "loss_mask", "is_latent", "finish", "chain_len", "thought"):
        np.testing.assert_array_equal(getattr(other, name), getattr(record, name), err_msg=name)
    for name in ("scores", "weights", "logps"):
        assert_rounding(getattr(other, name), getattr(record, name), size=10.0, err_msg=name)  # of the logits


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_refill_gives_the_samples_of_the_loop(name, lanes):
    cfg = tiny(**SMALL, **CASES[name], rollout__lanes=lanes)
    record = roll(cfg)
    lengths = record.mask.sum(1)
    assert len(set(lengths.tolist())) > 3 and (lengths == 9).any() and (lengths < 9).any()
    weights, batch = params(cfg.model), prompts()
    same(jax.device_get(refill_rollout(weights, batch, jax.random.key(0), cfg=cfg)), record)


def test_noise_per_row_follows_the_sample():
    cfg = tiny(**SMALL, **CASES["latent"])
    scale = np.linspace(0, 1, 24, dtype=np.float32)
    same(
        jax.device_get(refill_rollout(params(cfg.model), prompts(), jax.random.key(0), cfg=cfg, noise_scale=scale)),
        roll(cfg, noise_scale=scale),
    )


def test_interrupt_between_chunks():
    cfg, asked = tiny(**SMALL, **CASES["latent"], rollout__lanes=1), []

    def interrupted():
        asked.append(1)
        return len(asked) == 2

    assert refill_rollout(params(cfg.model), prompts(), jax.random.key(0), cfg=cfg, interrupted=interrupted) is None
    assert len(asked) == 2


def test_broken_weights_end_every_sample():
    cfg = tiny(**SMALL, **CASES["latent"])
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params(cfg.model))
    same(jax.device_get(refill_rollout(broken, prompts(), jax.random.key(0), cfg=cfg)), roll(cfg, weights=broken))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=["data 8", "2 x 2 x 2"])
def test_on_a_mesh(sizes):
    cfg, batch = tiny(**SMALL, **CASES["latent"], rollout__lanes=2), prompts(16)
    mesh = make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]))
    with jax.set_mesh(mesh):
        weights = jax.device_put(params(cfg.model), param_shardings(cfg.model, mesh, ROLLOUT_RULES))
        other = jax.device_get(refill_rollout(weights, put_batch(batch, mesh), jax.random.key(0), cfg=cfg, ways=sizes[0] * sizes[1]))
    assert (other.tokens == EOS).any()
    same(other, roll(cfg, batch))
