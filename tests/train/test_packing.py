"""Packed supervised batches: the same losses and gradients as padded ones, records apart, shapes that do not change from batch to batch.

Breaks when a record sees its neighbour, when a position or a step is lost or counted twice, or when a run compiles a program per batch.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import VOCAB, change, first_moments, params, tiny

from lgrpo.algos.latent_sft import SftTargets
from lgrpo.algos.packed import pack_rows, packed_hidden
from lgrpo.data.packing import Records, assign, packed, plan
from lgrpo.sharding import make_mesh, put_batch
from lgrpo.train.setup import state_shardings
from lgrpo.train.steps.sft import sft_losses, sft_step
from lgrpo.train.steps.update import init_state
from lgrpo.types import PromptBatch

P, C, A, N = 7, 9, 3, 8
CFG = tiny(
    model__n_layers=2,
    data__max_prompt=P,
    sft__max_chain=C,
    sft__max_answer=A,
    sft__batch_size=N,
    sft__compression=2,
    sft__label_noise=0.5,
    optim__lr=1e-2,
    optim__clip_norm=1e9,
)


def sizes(cfg, seed=0):
    rng = np.random.default_rng(seed)
    prompts, chains, answers = rng.integers(1, P + 1, N), rng.integers(1, C + 1, N), rng.integers(1, A + 1, N)
    prompts[0], chains[0], answers[0] = P, C, A  # one that fills everything
    per = cfg.sft.compression if cfg.sft.stage == "latent" else 1
    return prompts, chains, answers, Records(prompts, -(-chains // per) + 1 + answers, P, -(-C // per) + 1 + A)


def batches(cfg, microbatch=0, ways=1, seed=0):
    """The same records padded and packed. What is padding holds ids that would be seen if anything looked at it."""
    prompts, chains, answers, records = sizes(cfg, seed)
    rng = np.random.default_rng(seed + 1)
    masks = {
        "prompt": np.arange(P) >= P - prompts[:, None],
        "chain": np.arange(C) < chains[:, None],
        "answer": np.arange(A) < answers[:, None],
    }
    batch = {"uid": np.arange(N, dtype=np.int32) + 5}
    for name, mask in masks.items():
        batch[f"{name}_tokens"] = rng.integers(4, VOCAB, mask.shape).astype(np.int32)
        batch[f"{name}_mask"] = mask
    layout = plan(records, N, model=cfg.model, microbatch=microbatch, ways=ways)
    return batch, batch | packed(records, np.arange(N), layout)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **({"atol": 1e-6, "rtol": 2e-5} | tolerance)), a, b)


@functools.cache
def updated(cfg, packs, microbatch=0):
    """Metrics, first moments (the gradient, but for a factor) and held-out losses of one update."""
    batch = batches(cfg, microbatch)[packs]
    cfg = change(cfg, train__microbatch=microbatch)
    state = init_state(jax.tree.map(jnp.array, params(cfg.model)), cfg, rl=False)
    losses = jax.device_get(sft_losses(state.params, batch, cfg=cfg))
    state, metrics = sft_step(state, batch, cfg=cfg)
    return {name: float(x) for name, x in metrics.items()}, first_moments(jax.device_get(state)), losses


@pytest.mark.parametrize("microbatch", [0, 2])
@pytest.mark.parametrize("stage", ["explicit", "latent"])
def test_losses_and_gradients_are_those_of_padded_batches(stage, microbatch):
    cfg = change(CFG, sft__stage=stage)
    want, got = updated(cfg, False), updated(cfg, True, microbatch)
    assert want[0]["sft/ce"] > 0 and (want[0]["sft/kl"] > 0) == (stage == "latent")
    for name in want[0]:
        assert got[0][name] == pytest.approx(want[0][name], rel=2e-5), name
    close(got[1], want[1])
    close(got[2], want[2])
    assert [float(x.count) for x in got[2]] == [float(x.count) for x in want[2]]


def test_fewer_positions_and_several_slices():
    """Packing is worth nothing if the rows are as many as the records."""
    for microbatch in (0, 4):
        batch = batches(CFG, microbatch)[1]
        rows, slices, width = batch["pack_inputs"].shape
        assert rows * slices * width < (0.95 if microbatch else 0.8) * N * (P + C + 1 + A)
        assert (slices == 1) if not microbatch else (slices > 1 and rows * width <= microbatch * (P + C + 1 + A) + width)


def test_a_record_feels_nothing_of_its_neighbours():
    """Derivative of every record's steps in every position's embedding: zero outside the record and behind the step."""
    cfg = change(CFG, sft__stage="explicit")
    batch = batches(cfg)[1]
    prompts = PromptBatch(batch["prompt_tokens"], batch["prompt_mask"], batch["uid"])
    completion = C + 1 + A
    ids = np.random.default_rng(0).integers(4, VOCAB, (N, completion, 1)).astype(np.int32)
    flags = np.ones((N, completion), bool)
    targets = SftTargets(ids, np.ones(ids.shape, np.float32), ~flags, flags)
    weights = params(cfg.model)

    @jax.jit
    def sensitivity(weights):
        rows = pack_rows(prompts, targets, batch["pack_inputs"][:, 0], batch["pack_steps"][:, 0])
        # Weights of the mixtures scale the inputs one by one.
        jacobian = jax.jacfwd(lambda w: packed_hidden(weights, cfg.model, rows.replace(weights=w)).sum(-1))(rows.weights)
        own_row = jnp.einsum("rqrwk->rqw", jnp.abs(jacobian))
        others = ~jnp.eye(jacobian.shape[0], dtype=bool)[:, None, :, None, None]
        return rows, own_row, jnp.where(others, jnp.abs(jacobian), 0).max()

    rows, felt, elsewhere = jax.device_get(sensitivity(weights))
    assert elsewhere == 0
    places = np.asarray(rows.steps)
    for row, step in np.argwhere(rows.targets.mask):
        at = places[row, step]
        own = (rows.record[row] == rows.record[row, at]) & (np.arange(felt.shape[-1]) <= at)
        assert rows.record[row, at] >= 0 and (felt[row, step, own] > 0).all() and (felt[row, step, ~own] == 0).all()
    assert max(len({*row} - {-1}) for row in rows.record) > 1, "no row holds two records: nothing was tested"


def test_on_a_mesh():
    """Rows over eight devices, weights sharded: the update of one device. Reduced on other devices in another order, hence the tolerance."""
    cfg = change(CFG, sft__stage="latent", mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    batch = batches(cfg, microbatch=4, ways=4)[1]
    assert batch["pack_inputs"].shape[0] % 4 == 0
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        placed = state_shardings(cfg, mesh, rl=False)
        state = jax.jit(lambda p: init_state(p, cfg, rl=False), out_shardings=placed)(params(cfg.model))
        state, metrics = sft_step(state, put_batch(batch, mesh), cfg=cfg)
    want = updated(change(CFG, sft__stage="latent"), False)
    assert float(metrics["sft/loss"]) == pytest.approx(want[0]["sft/loss"], rel=1e-4)
    close(first_moments(jax.device_get(state)), want[1], atol=1e-5, rtol=1e-3)


def test_rows_hold_every_record_once_within_their_limits():
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, 60, 200)
    steps = np.minimum(rng.integers(1, 40, 200), inputs)
    rows = assign(inputs, steps, 96, 64)
    assert sorted(n for row in rows for n in row) == list(range(200))
    assert all(inputs[row].sum() <= 96 and steps[row].sum() <= 64 for row in rows)
    assert inputs.sum() / (96 * len(rows)) > 0.9
    assert len(assign(np.full(5, 96), np.full(5, 3), 96, 64)) == 5


def test_one_shape_for_nearly_all_batches():
    """What is compiled is compiled for a shape. Lengths as in GSM8K: a long tail."""
    rng = np.random.default_rng(0)
    prompts = np.minimum(rng.gamma(7, 9, 2000).astype(int) + 1, 128)
    completions = np.minimum(rng.gamma(3, 12, 2000).astype(int) + 2, 105)
    records = Records(prompts, completions, 128, 105)
    model = tiny().model
    for microbatch, ways in ((0, 1), (16, 4)):
        layout = plan(records, 64, model=model, microbatch=microbatch, ways=ways)
        items = [packed(records, rng.choice(2000, 64, replace=False), layout) for _ in range(40)]
        shapes = [item["pack_inputs"].shape for item in items]
        assert len(set(shapes)) <= 2 and shapes.count(shapes[0]) >= 34
        assert all(r % ways == 0 for r, _, _ in shapes)
        filled = np.mean([(item["pack_inputs"] >= 0).mean() for item in items])
        padded = (prompts + completions - 1).mean() / (128 + 105)
        assert filled > 1.6 * padded and filled > 0.75


def test_equal_records_are_left_in_rows_of_their_own():
    """Where there is no padding, packing costs nothing."""
    records = Records(np.full(50, 20), np.full(50, 12), 20, 12)
    layout = plan(records, 16, model=tiny().model)
    item = packed(records, np.arange(16), layout)
    assert item["pack_inputs"].size <= 16 * 32
