"""Settings that only say how to compute: prefix sharing, chunks, micro-batches, remat, padding. Breaks when one of them changes the gradient."""

import functools

import numpy as np
import pytest
from support import change, first_moments, fresh_state, prompts, tiny, train_batch

from lgrpo.latent.laws.exact import Exact
from lgrpo.train.steps.rl import train_step

# `exact` because its loss also needs the mass of all tokens outside the mixture.
BASE = tiny(
    rollout__latent__law=Exact(),
    optim__clip_norm=1e9,
    optim__lr=1e-3,
    train__diagnostics="off",
)
SETTINGS = {
    "prompt repeated for every sample": {"train__share_prefix": False},
    "uneven chunks, remat": {"train__logprob_chunk": 48, "model__remat": True},
    "one position at a time, two micro-batches": {"train__logprob_chunk": 1, "train__microbatch": 2},
    "one prompt at a time": {"train__microbatch": 1},
    "longer padding": {},
}


@functools.cache
def gradients(cfg, pad=0):
    state, metrics = train_step(fresh_state(cfg), train_batch(BASE, prompts(pad=pad)), cfg=cfg)
    return first_moments(state), {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_gradient_is_the_same(name):
    want, want_metrics = gradients(BASE)
    got, metrics = gradients(change(BASE, **SETTINGS[name]), pad=3 if name == "longer padding" else 0)
    assert want.keys() == got.keys() and len(want) == 12
    assert all(np.abs(x).max() > 1e-4 for x in want.values())  # something flows into every tensor
    for path, x in want.items():
        np.testing.assert_allclose(got[path], x, atol=1e-5, rtol=1e-4, err_msg=path)
    for key in ("policy/loss", "policy/ratio_max", "policy/logp", "grad/norm"):
        assert metrics[key] == pytest.approx(want_metrics[key], abs=1e-5, rel=1e-4), key
