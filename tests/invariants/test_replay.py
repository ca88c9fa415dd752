"""Teacher-forced log-probs equal the sampler's. Breaks when rollout and learner disagree about a position, a mask, a temperature or a density:
ratios then start away from 1 and the policy gradient is wrong without any other sign."""

import jax
import numpy as np
import pytest
from oracles import replay as oracle
from support import END, REPLAY, assert_rounding, change, fresh_state, params, prompts, roll, tiny, train_batch

from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gaussian import Gaussian
from lgrpo.models.kv_cache import cache_widths
from lgrpo.train.steps.rl import group, train_step
from lgrpo.types import Finish

EXACT = {"rollout__latent__law": Exact()}
CASES = {
    "gumbel_mean": {"rollout__answer__temperature": 0.6},
    "unit scale, min_latent, gumbel_top1": {
        "rollout__latent__noise_scale": 0.5,
        "rollout__latent__law__density_scale": "unit",
        "rollout__latent__min_latent": 2,
        "rollout__answer__sampler": "gumbel_top1",
    },
    "gumbel_weighted 0.5": {
        "rollout__latent__law__density": "weighted",
        "rollout__latent__noise_scale": 0.5,
        "rollout__latent__max_latent": 0,
    },
    "unclamped, drawn at 0.5, scored at 1": {
        "rollout__latent__law__clamp": None,
        "rollout__latent__law__one_sided": False,
        "rollout__latent__law__top_p": 1.0,
        "rollout__latent__noise_scale": 0.5,
        "rollout__latent__max_latent": 0,
    },
    "gumbel_sum 0.5": {"rollout__latent__law__density": "sum", "rollout__latent__noise_scale": 0.5},
    "gaussian": {"rollout__latent__law": Gaussian(sigma=0.5), "rollout__latent__tau": 0.7, "rollout__latent__max_latent": 0},
    "exact": EXACT | {"rollout__latent__max_latent": 0, "rollout__answer__temperature": 0.7},
    "exact 0.5 min_latent": EXACT | {"rollout__latent__noise_scale": 0.5, "rollout__latent__min_latent": 2},
    "explicit": {"rollout__mode": "explicit", "rollout__latent__k": 1, "rollout__answer__temperature": 0.8},
}


def gaps(cfg):
    """(record, |replay - rollout| on generated positions)."""
    record = roll(cfg)
    grouped = jax.tree.map(np.asarray, group(record, cfg.rollout.group_size))
    again = np.asarray(REPLAY(params(cfg.model), prompts(), grouped, cfg=cfg)).reshape(record.logps.shape)
    assert not again[~record.mask].any()
    return record, np.abs(again - record.logps)[record.mask]


@pytest.mark.parametrize("name", CASES)
def test_replay_equals_rollout_equals_oracle(name):
    cfg = tiny(**CASES[name])
    record, gap = gaps(cfg)
    assert gap.max() < 1e-4
    # the record has what this is about: latent steps, the end of thinking, answers, and rows of different lengths
    assert record.is_latent.any() == (cfg.rollout.mode == "latent")
    assert record.thought.any() and (record.finish == Finish.LENGTH).any() and len(set(record.mask.sum(1))) > 1
    batch = prompts()
    for row in (0, 5, 10, 15):
        own = jax.tree.map(lambda x, row=row: x[row], record)
        b = row // cfg.rollout.group_size
        want = oracle.logps(params(cfg.model), cfg, batch.tokens[b][batch.mask[b]], own)
        np.testing.assert_allclose(own.logps[own.mask], want, atol=2e-4, rtol=1e-4, err_msg=f"row {row}")


def test_bfloat16_stays_within_its_bound():
    """Measured on CPU with these weights: 0.012 nats in the mean, 0.11 at most, over 122 positions, nearly all of it from hidden states.

    What logits would lose in bfloat16 (0.0014 more in the mean) is below that; tests/models/test_decoder.py looks at their product alone.
    """
    cfg = tiny(model__dtype="bfloat16", **CASES["gumbel_mean"])
    record, gap = gaps(cfg)
    assert record.is_latent.sum() > 20
    assert gap.mean() < 0.025 and gap.max() < 0.25


def test_bfloat16_cache_shows_its_rounding_and_nothing_else():
    """Measured on CPU with these weights: 0.004 nats in the mean, 0.049 at most, over 122 positions."""
    cfg = tiny(rollout__kv_dtype="bfloat16", **CASES["gumbel_mean"])
    record, gap = gaps(cfg)
    assert record.is_latent.sum() > 20
    assert 0 < gap.mean() < 0.02 and gap.max() < 0.2


@pytest.mark.parametrize("name", ["gumbel_mean", "exact"])
def test_cache_in_parts_loses_nothing(name):
    """Breaks when a column at the seam is written twice, never, or outside the part that exists."""
    more = {"rollout__max_new_tokens": 70, "rollout__latent__max_latent": 45, "model__n_layers": 1}
    cfg = tiny(**CASES[name] | more)
    assert cache_widths(70, cfg.rollout.cache_parts) == [35, 35]
    record, gap = gaps(cfg)
    assert gap.max() < 1e-4
    lengths = record.mask.sum(1)
    assert (lengths <= 35).any() and (lengths > 40).any() and record.is_latent[:, 35:40].any()
    whole = roll(change(cfg, rollout__cache_parts=1))
    np.testing.assert_array_equal(record.ids, whole.ids)
    assert_rounding(record.logps, whole.logps)


@pytest.mark.parametrize(
    ("length", "parts", "widths"),
    [(12, 4, [12]), (63, 4, [63]), (64, 4, [32, 32]), (100, 4, [34, 34, 32]), (256, 4, [64, 64, 64, 64]), (256, 1, [256])],
)
def test_parts_of_the_cache(length, parts, widths):
    assert cache_widths(length, parts) == widths


@pytest.mark.parametrize("name", ["gumbel_mean", "exact", "gaussian"])
def test_first_update_sees_a_ratio_of_one(name):
    cfg = tiny(train__diagnostics="off", **CASES[name])
    _, metrics = train_step(fresh_state(cfg), train_batch(cfg), cfg=cfg)
    assert metrics["policy/replay_gap"] < 1e-4
    assert abs(metrics["policy/ratio_max"] - 1) < 1e-4 and abs(metrics["policy/ratio"] - 1) < 1e-4
    assert metrics["policy/clip_frac"] == 0 and abs(metrics["policy/kl_k1"]) < 1e-4


def test_replay_gap_notices_other_weights():
    cfg = tiny(train__diagnostics="off", **CASES["gumbel_mean"])
    _, metrics = train_step(fresh_state(cfg, params(cfg.model, 1)), train_batch(cfg), cfg=cfg)
    assert metrics["policy/replay_gap"] > 0.1
    # with recomputed behaviour log-probs the ratio is one all the same
    again = change(cfg, algo__old_logps="replay")
    _, metrics = train_step(fresh_state(again, params(cfg.model, 1)), train_batch(cfg), cfg=again)
    assert abs(metrics["policy/ratio_max"] - 1) < 1e-4


def test_padding_batch_order_and_company_do_not_matter():
    """A sample is named by (uid, sample, step): the same alone, in any order, and with longer padding."""
    cfg = tiny()
    base, batch = roll(cfg), prompts()
    group_rows = lambda b: slice(b * 4, b * 4 + 4)  # noqa: E731

    def same(a, b, rows_a, rows_b):
        for name in ("ids", "mask", "is_latent", "finish", "thought", "chain_len"):
            np.testing.assert_array_equal(getattr(a, name)[rows_a], getattr(b, name)[rows_b], err_msg=name)
        for name in ("scores", "weights", "logps"):
            assert_rounding(getattr(a, name)[rows_a], getattr(b, name)[rows_b], size=10.0, err_msg=name)  # of the logits

    same(base, roll(cfg, prompts(pad=3)), slice(None), slice(None))
    order = np.array([2, 0, 3, 1])
    mixed = roll(cfg, jax.tree.map(lambda x: x[order], batch))
    for new, old in enumerate(order):
        same(base, mixed, group_rows(old), group_rows(new))
    alone = roll(cfg, jax.tree.map(lambda x: x[2:3], batch))
    same(base, alone, group_rows(2), slice(None))
    assert any((base.ids[0] != base.ids[n]).any() for n in range(1, 4))  # samples of a group do differ
    other = roll(cfg, batch.replace(uid=batch.uid + 1))
    assert (other.ids != base.ids).any()
    assert (base.tokens == END).any()
