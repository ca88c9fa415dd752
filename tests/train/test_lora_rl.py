"""RL on adapters: only they move, what is sampled and exported is the merged model, the KL's start is the base, and a run resumes.

Breaks when the base is trained or copied, when rollout and learner merge differently, or when a reader of the checkpoint misses the adapters.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import REPLAY, assert_rounding, change, first_moments, params, tiny, train_batch

from lgrpo.algos.policy_loss import k3_kl
from lgrpo.config import (
    AlgoConfig,
    CheckpointConfig,
    DataConfig,
    ExperimentConfig,
    LatentConfig,
    LoggingConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    TrainConfig,
)
from lgrpo.config.validate import validate
from lgrpo.models.lora import adapter_specs, merge
from lgrpo.models.spec import abstract_params, param_specs, spec_init
from lgrpo.runs.checkpoint import load_params
from lgrpo.sharding import make_mesh
from lgrpo.train import collect, rl
from lgrpo.train.layout import layout
from lgrpo.train.setup import open_session, publish
from lgrpo.train.steps.rl import train_step
from lgrpo.train.steps.update import attached_weights, init_state, merged_weights

CFG = tiny(
    model__n_layers=2,
    rollout__max_new_tokens=6,
    rollout__latent__max_latent=2,
    algo__lora=LoraConfig(rank=2, alpha=6.0),
    optim__lr=1e-2,
    optim__clip_norm=1e9,
    train__diagnostics="off",
)
FULL = change(CFG, algo__lora=LoraConfig())


def adapted(seed=0):
    """A base and adapters that do change something."""
    specs = adapter_specs(param_specs(CFG.model), 2)
    fresh = jax.device_get(jax.jit(lambda: spec_init(specs, CFG.model, jax.random.key(seed)))())
    rng = np.random.default_rng(seed)
    return {
        "base": jax.device_get(params(CFG.model)),
        "adapters": jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), fresh),
    }


def state_of(cfg, weights):
    return init_state(jax.tree.map(jnp.array, weights), cfg, rl=True)


def batch_of(weights):
    return train_batch(FULL, weights=merge(weights["base"], weights["adapters"], 3.0))


def test_gradients_are_those_of_the_merged_matrices_on_adapters_alone():
    """An update of the whole model at the merged weights gives dW; dA = s dW b', dB = s a' dW. The layers' merging must not change that."""
    weights = adapted()
    merged = merge(weights["base"], weights["adapters"], 3.0)
    batch = batch_of(weights)
    whole = first_moments(jax.device_get(train_step(state_of(FULL, merged), batch, cfg=FULL)[0]))
    state, metrics = train_step(state_of(CFG, weights), batch, cfg=CFG)
    state = jax.device_get(state)
    assert float(metrics["policy/replay_gap"]) < 1e-4
    got = first_moments(state)
    assert got and all(path.startswith("['adapters']") for path in got)
    jax.tree.map(np.testing.assert_array_equal, state.params["base"], weights["base"])
    for name, adapter in weights["adapters"].items():
        slope = whole[f"['blocks']['{name}']"]
        layers, rank = slope.shape[0], adapter["a"].shape[-1]
        a, b = adapter["a"].reshape(layers, -1, rank).astype(np.float64), adapter["b"].reshape(layers, rank, -1).astype(np.float64)
        flat = slope.reshape(layers, a.shape[1], -1)
        for part, want in (("a", 3 * flat @ b.swapaxes(1, 2)), ("b", 3 * a.swapaxes(1, 2) @ flat)):
            found = got[f"['adapters']['{name}']['{part}']"]
            np.testing.assert_allclose(found.reshape(want.shape), want, atol=3e-5, rtol=2e-3, err_msg=f"{name}.{part}")
            assert (state.params["adapters"][name][part] != adapter[part]).any()


def test_kl_is_to_the_base_and_keeps_no_copy():
    cfg, weights = change(CFG, algo__kl_coef=0.5), adapted()
    state, batch = state_of(cfg, weights), batch_of(weights)
    assert state.reference is None
    merged = merge(weights["base"], weights["adapters"], 3.0)
    theirs, ours = (REPLAY(p, batch.prompts, batch.rollout, cfg=FULL) for p in (weights["base"], merged))
    want = float(k3_kl(ours, theirs, batch.loss_mask).value())
    _, metrics = train_step(state, batch, cfg=cfg)
    assert want > 1e-4 and float(metrics["policy/kl_k3"]) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rollout_reads_the_merged_model(dtype):
    """Published weights, and those that a layer of the learner merges for itself."""
    cfg, weights = change(CFG, model__dtype=dtype, mesh__data=8), adapted()
    mesh = make_mesh(cfg.mesh)
    published = publish(jax.tree.map(jnp.array, weights), cfg, mesh)
    merged = jax.jit(lambda w: merged_weights(w, cfg.algo.lora))(weights)
    units = 8 if dtype == "float32" else 2**15 + 64  # two programs: half a bit of bfloat16, and rounding
    assert_rounding(published, merged, units=units)
    low = attached_weights(weights, cfg.algo.lora)["blocks"]["wo"]
    one = jax.tree.map(lambda x: x[1], low).merged().astype(dtype)
    exact = np.float64(low.base[1]) + 3.0 * np.tensordot(np.float64(low.a[1]), np.float64(low.b[1]), axes=1)
    for found in (one, published["blocks"]["wo"][1]):
        np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=1e-5 if dtype == "float32" else 2**-8, atol=1e-6)


def test_memory_of_the_state():
    """No gradient of the base, so no moments; no reference either."""
    full = {row.part: 0 for row in layout(FULL, 8, rl=True)}
    sums = {}
    for name, cfg in (("full", change(FULL, algo__kl_coef=0.1)), ("lora", change(CFG, algo__kl_coef=0.1))):
        sums[name] = dict.fromkeys(full, 0) | {"reference": 0}
        for row in layout(cfg, 8, rl=True):
            sums[name][row.part] += row.bytes
    assert sums["full"]["reference"] > 0 and sums["lora"]["reference"] == 0
    adapters = sums["lora"]["params"] - sums["full"]["params"]
    assert adapters > 0 and sums["lora"]["optimizer"] <= 2 * adapters + 64 and sums["lora"]["rollout"] == sums["full"]["rollout"]


def test_dropout_is_refused():
    cfg = change(CFG, algo__lora__dropout=0.1)
    assert [p for p in validate(cfg, device_count=1, kind="train") if p.startswith("algo.lora.dropout=0.1")]
    assert not validate(CFG, device_count=1, kind="train")


@pytest.fixture
def lucky_grader(monkeypatch):
    honest = rl.score

    def score(rollout, answers, tokenizer, cfg):
        scored = honest(rollout, answers, tokenizer, cfg)
        luck = np.asarray(rollout.tokens)[:, 1] % 2 == 0
        return scored.replace(rewards=luck.astype(np.float32), valid=np.ones_like(luck))

    monkeypatch.setattr(rl, "score", score)


def test_resumes_and_is_read_merged(tmp_path, lucky_grader):
    cfg = ExperimentConfig(
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        data=DataConfig(difficulty="mini", data_dir=str(tmp_path / "tfds"), max_prompt=32),
        rollout=RolloutConfig(group_size=4, max_new_tokens=6, latent=LatentConfig(k=4, max_latent=1)),
        algo=AlgoConfig(invalid="keep", kl_coef=0.1, lora=LoraConfig(rank=2, alpha=6.0)),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(num_steps=2, prompts_per_step=8),
        checkpoint=CheckpointConfig(every=1),
        logging=LoggingConfig(tensorboard=False, progress=False),
        mesh=MeshConfig(data=8),
    )
    assert rl.run(cfg, tmp_path / "whole") == 0
    half = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, num_steps=1))
    assert rl.run(half, tmp_path / "parts") == 0 and rl.run(cfg, tmp_path / "parts") == 0
    states = []
    for name in ("whole", "parts"):
        session = open_session(cfg, tmp_path / name, rl=True, buffer=collect.empty_buffer)
        session.close()
        assert session.start == 2
        states.append(jax.device_get(session.state))
    jax.tree.map(np.testing.assert_array_equal, *states)
    merged = merge(states[0].params["base"], states[0].params["adapters"], 3.0)
    read = load_params(tmp_path / "whole", abstract_params(session.cfg.model))
    assert any((np.asarray(merged["blocks"][n]) != states[0].params["base"]["blocks"][n]).any() for n in merged["blocks"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7, rtol=1e-6), read, merged)
