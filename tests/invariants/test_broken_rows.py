"""DESIGN section 6, point 8: a broken row is alone, in replay, in the update, in the cache; an update without a counted position changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import change, fresh_state, params, prompts, roll, tiny, train_batch

from lgrpo.config.validate import validate
from lgrpo.latent.replay import replay_logps
from lgrpo.train.collect import spread
from lgrpo.train.optimizer import norm_in_float32
from lgrpo.train.steps.rl import group, make_train_batch, train_step, winner_step
from lgrpo.types import Finish

CFG = tiny(model__n_layers=1, rollout__max_new_tokens=6, rollout__latent__max_latent=2, optim__lr=1e-2, train__diagnostics="full")
BROKEN = (1, 2)  # group, sample


def graded(spoil=None, cfg=CFG):
    """A batch [B,G,...] from a rollout that `spoil` changes at BROKEN. Rewards are such that every group counts."""
    record = group(roll(cfg), cfg.rollout.group_size)
    rewards = np.tile(np.array([1.0, 0.0, 0.0, 1.0], np.float32), (4, 1))
    valid = np.ones((4, 4), bool)
    if spoil:
        record, valid[BROKEN] = spoil(record), False
    return make_train_batch(prompts(), record, rewards, valid, cfg=cfg)


def put(name, value, column=0):
    def spoil(record):
        x = np.array(getattr(record, name))
        x[(*BROKEN, column)] = value
        return record.replace(**{name: x})

    return spoil


def ended_in_nan(record):
    """What the sampler leaves of such a row: its last live mixture is recorded, with weights that are not finite."""
    finish, weights = np.array(record.finish), np.array(record.weights)
    finish[BROKEN], weights[(*BROKEN, 0)] = Finish.NAN, np.nan
    return record.replace(finish=finish, weights=weights)


SPOILS = {
    "ended in NaN": ended_in_nan,
    "weights": put("weights", np.nan),
    "scores": put("scores", np.inf),
    "log-probs": put("logps", np.nan),
}


def removed(record):
    """The same batch without the row: what must be equal to the broken one."""
    blank = jax.tree.map(lambda x: np.array(x), record)
    for name in ("ids", "scores", "weights", "is_latent", "mask", "loss_mask", "logps", "chain_len", "thought"):
        getattr(blank, name)[BROKEN] = 0
    return blank


@pytest.mark.parametrize("name", SPOILS)
@pytest.mark.parametrize("invalid", ["zero", "exclude", "keep"])
def test_a_broken_row_changes_nothing_else(name, invalid):
    cfg = change(CFG, algo__invalid=invalid)
    whole, broken = graded(removed, cfg), graded(SPOILS[name], cfg)
    np.testing.assert_array_equal(whole.advantages, broken.advantages)
    (state, metrics), (wanted, wanted_metrics) = (train_step(fresh_state(cfg), b, cfg=cfg) for b in (broken, whole))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(wanted))
    for key, value in wanted_metrics.items():
        np.testing.assert_array_equal(metrics[key], value, err_msg=key)
    assert int(state.skipped) == 0 and float(metrics["grad/norm"]) > 0


def test_replay_leaves_broken_rows_out_forward_and_backward():
    record = group(roll(CFG), 4)
    spoiled = ended_in_nan(record)

    @jax.jit
    @jax.value_and_grad
    def total(weights, rollout):
        return replay_logps(weights, prompts(), rollout, cfg=CFG).sum()

    value, grads = total(params(CFG.model), spoiled)
    wanted, wanted_grads = total(params(CFG.model), removed(record))
    np.testing.assert_array_equal(value, wanted)
    jax.tree.map(np.testing.assert_array_equal, grads, wanted_grads)


def test_a_prompt_that_breaks_its_whole_group_is_not_read():
    """The cause may be the prompt's own tokens: then hidden states of the prompt are NaN however its rows are masked."""
    batch = prompts()
    token = int(np.setdiff1d(batch.tokens[1][batch.mask[1]], np.concatenate([batch.tokens[i][batch.mask[i]] for i in (0, 2, 3)]))[0])
    weights = params(CFG.model)
    spoiled = weights | {"embed": weights["embed"].at[token].set(jnp.nan)}
    record = group(roll(CFG, weights=spoiled), 4)
    assert (record.finish[1] == Finish.NAN).all() and (record.finish[0] != Finish.NAN).any()
    valid = record.finish != Finish.NAN
    rewards = np.tile(np.array([1.0, 0.0, 0.0, 1.0], np.float32), (4, 1))
    made = make_train_batch(batch, record, rewards, valid, cfg=CFG)
    state, metrics = train_step(fresh_state(CFG, spoiled), made, cfg=CFG)
    assert int(state.skipped) == 0 and np.isfinite(float(metrics["grad/norm"])) and float(metrics["grad/norm"]) > 0


def test_a_row_with_broken_log_probs_is_no_winner():
    record = group(roll(CFG), 4)
    rewards, valid = np.eye(4, dtype=np.float32), np.ones((4, 4), bool)
    record = record.replace(logps=np.where(record.mask, 0.0, record.logps).astype(np.float32))
    before = winner_step(record, rewards, valid, cfg=CFG)
    logps = record.logps.copy()
    logps[1, 1, 0] = np.inf  # the only one of its group that is right
    after = winner_step(record.replace(logps=logps), rewards, valid, cfg=CFG)
    assert (float(before["diag/winner_share"]), float(after["diag/winner_share"])) == (1.0, 0.75)


def test_empty_updates_change_nothing():
    """Four updates of which one has groups: the state of that one update alone, moments and schedule included."""
    cfg = change(CFG, train__updates_per_step=4, optim__warmup=3, optim__weight_decay=0.5)
    batch = train_batch(cfg)
    first = jax.tree.map(lambda x: jnp.where(jnp.arange(4).reshape(-1, *[1] * (x.ndim - 1)) == 0, x, jnp.zeros_like(x)), batch)
    state, metrics = train_step(fresh_state(cfg), first, cfg=cfg)
    one, alone = train_step(fresh_state(cfg), jax.tree.map(lambda x: x[:1], batch), cfg=change(cfg, train__updates_per_step=1))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), state.params, one.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-9), state.opt_state, one.opt_state)
    assert float(metrics["grad/empty"]) == 0.75 and int(state.skipped) == 0
    np.testing.assert_allclose(metrics["optim/lr"], alone["optim/lr"], rtol=1e-6)


def test_what_is_there_is_spread_over_the_updates():
    assert spread(8, 8, 4).tolist() == list(range(8))
    assert spread(5, 8, 4).tolist() == [0, 2, 4, 6, 1]
    for used in range(17):
        slots = spread(used, 16, 4)
        counts = np.bincount(slots // 4, minlength=4)
        assert len(set(slots.tolist())) == used
        assert counts.max() - counts.min() <= 1


def test_norms_are_float32_and_bfloat16_weights_want_a_rate_that_moves_them():
    tree = {"a": jnp.full((4096,), 0.01, jnp.bfloat16), "b": jnp.full((3,), 2.0, jnp.bfloat16)}
    exact = np.sqrt(sum(float((np.asarray(x, np.float64) ** 2).sum()) for x in tree.values()))
    assert norm_in_float32(tree).dtype == jnp.float32
    np.testing.assert_allclose(norm_in_float32(tree), exact, rtol=1e-5)
    cfg = change(CFG, model__param_dtype="bfloat16", optim__lr=1e-6)
    assert any("param_dtype" in line and "float32" in line for line in validate(cfg, device_count=1, kind="train"))
    assert not any("param_dtype" in line for line in validate(change(cfg, algo__lora__rank=2), device_count=1, kind="train"))
