"""Adapters: merged weights are the adapted forward pass, they start as no change, and only they learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import change, tiny

from lgrpo.algos.stage1 import stage1_specs
from lgrpo.models.lora import MATRICES, LowRank, adapter_specs, attach, merge
from lgrpo.models.spec import param_specs, spec_init
from lgrpo.train.optimizer import trainable
from lgrpo.train.steps.sft import sft_step
from lgrpo.train.steps.update import init_state

CFG = tiny(
    sft__stage="explicit",
    sft__lora__rank=2,
    sft__lora__alpha=6.0,
    sft__lora__dropout=0.25,
    rollout__mode="explicit",
    rollout__latent__k=1,
    optim__lr=1e-2,
)
# How each matrix is applied to its input.
EQUATIONS = {"wq": "nd,dhk->nhk", "wk": "nd,dhk->nhk", "wv": "nd,dhk->nhk", "wo": "nhk,hkd->nd"}


def adapted(specs, seed=0):
    """(base, adapters) with adapters that do change something."""
    found = jax.jit(lambda: spec_init({"base": specs, "adapters": adapter_specs(specs, 2)}, CFG.model, jax.random.key(seed)))()
    noise = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(seed).normal(size=x.shape).astype(np.float32), found["adapters"])
    return found["base"], noise


def test_merging_equals_the_adapted_forward_pass():
    base, adapters = adapted(param_specs(CFG.model))
    merged = jax.jit(lambda b, a: merge(b, a, 3.0))(base, adapters)
    rng = np.random.default_rng(1)
    for name in MATRICES:
        w, a, b = (np.asarray(x)[1] for x in (base["blocks"][name], adapters[name]["a"], adapters[name]["b"]))  # layer 1
        x = rng.normal(size=(5, *a.shape[:-1])).astype(np.float32)
        equation = EQUATIONS.get(name, "nd,df->nf")
        low = np.tensordot(x, a, axes=a.ndim - 1)
        expected = np.einsum(equation, x, w) + 3.0 * np.tensordot(low, b, axes=1)
        np.testing.assert_allclose(np.einsum(equation, x, np.asarray(merged["blocks"][name])[1]), expected, rtol=2e-4, atol=2e-5)
    for name in ("embed", "unembed", "final_norm"):
        np.testing.assert_array_equal(merged[name], base[name])


def test_fresh_adapters_change_nothing():
    specs = param_specs(CFG.model)
    fresh = jax.jit(lambda: spec_init({"base": specs, "adapters": adapter_specs(specs, 2)}, CFG.model, jax.random.key(0)))()
    merged = merge(fresh["base"], fresh["adapters"], 3.0)
    for one, other in zip(jax.tree.leaves(merged), jax.tree.leaves(fresh["base"]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_dropout_leaves_out_input_features_and_keeps_the_mean():
    base, adapters = adapted(param_specs(CFG.model))
    one = jax.jit(lambda key: jax.vmap(LowRank.merged)(attach(base, adapters, 3.0, dropout=0.25, key=key)["blocks"]["w_up"]))
    change_of = [np.asarray(one(jax.random.key(i)) - base["blocks"]["w_up"]) for i in range(200)]
    rows = np.abs(change_of[0]).max(-1) == 0
    assert 0 < rows.mean() < 0.6
    whole = np.asarray(merge(base, adapters, 3.0)["blocks"]["w_up"] - base["blocks"]["w_up"])
    np.testing.assert_allclose(np.mean(change_of, axis=0), whole, atol=0.2 * np.abs(whole).max())
    with pytest.raises(ValueError, match="needs a key"):
        attach(base, adapters, 3.0, dropout=0.25)


def batch():
    rng = np.random.default_rng(0)
    full = np.ones((8, 4), bool)
    tokens = rng.integers(4, 24, (3, 8, 4)).astype(np.int32)
    out = {
        f"{name}_{kind}": x
        for name, t in zip(("prompt", "chain", "answer"), tokens, strict=True)
        for kind, x in (("tokens", t), ("mask", full))
    }
    return out | {"uid": np.arange(8, dtype=np.int32)}


@pytest.mark.parametrize("stage", ["explicit", "encoder"])
def test_only_adapters_learn(stage):
    cfg = change(CFG, sft__stage=stage, sft__compression=2, rollout__latent__k=4)
    specs = stage1_specs(cfg.model) if stage == "encoder" else param_specs(cfg.model)
    base, adapters = adapted(specs)
    params = {"base": base, "adapters": adapters}
    before = jax.tree.map(np.array, params)
    state = jax.jit(lambda p: init_state(p, cfg, rl=False))(params)
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
    for _ in range(2):
        state, metrics = sft_step(state, batch(), cfg=cfg)
    assert np.isfinite(float(metrics["sft/ce"]))
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), state.params, before)
    expected = trainable(state.params, cfg.optim, stage)
    assert moved == expected
    learning = sum(x.size for x, t in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True) if t)
    assert moments < 2 * learning + 10, "no moments for what is frozen"
    if stage == "encoder":
        assert moved["base"]["encoder"]["compress"] and not moved["base"]["encoder"]["embed"]
        assert not any(jax.tree.leaves(moved["adapters"]["decoder"]))
    assert jnp.isfinite(metrics["grad/norm"])
