"""Advantages, invalid-sample masking, first-token selection. Breaks when a group teaches the wrong sample, or its own rounding."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import advantages as oracle
from support import assert_rounding, golden

from lgrpo.algos.advantages import group_advantages, rollout_advantages, token_advantages, winner_scores
from lgrpo.config import AlgoConfig
from lgrpo.errors import UserError
from lgrpo.types import Rollout


def record(logps, mask, is_latent=None):
    """A Rollout [B,G,T] of which only log-probs and masks matter."""
    empty = np.zeros((*mask.shape, 1))
    is_latent = np.zeros(mask.shape, bool) if is_latent is None else is_latent
    return Rollout(empty, empty, empty, is_latent, mask, mask, logps, *[np.zeros(mask.shape[:2])] * 3)


def same(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.abs(got) < 1e-6, np.abs(want) < 1e-6)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("invalid", ["zero", "exclude"])
def test_golden(size, invalid):
    """With the official quirks: a lone survivor keeps its reward, and under `zero` the winner may be invalid."""
    g = golden("advantages_include" if invalid == "zero" else "advantages_exclude")
    rows = g["group_size"] == size
    arrays = {k: v[rows].reshape(-1, size, *v.shape[1:]) for k, v in g.items() if v.ndim and len(v) == len(rows)}
    rewards, mask, valid = arrays["rewards"], arrays["response_mask"], ~arrays["is_truncated"]
    logps = np.where(mask, arrays["old_log_probs"], np.nan)  # what is off the mask must be ignored
    cfg = AlgoConfig(invalid=invalid, lone_survivor="reward", winner_must_be_valid=invalid == "exclude")

    @jax.jit
    def both(rewards, valid, logps, mask):
        per_sample = group_advantages(rewards, valid, invalid=invalid, lone_survivor="reward", zero_last=True)
        scores = winner_scores(record(logps, mask), valid, AlgoConfig(winner_must_be_valid=False))
        return token_advantages(per_sample, scores, mask), rollout_advantages(record(logps, mask), rewards, valid, cfg)

    apart, whole = jax.device_get(both(rewards, valid, logps, mask))
    same(apart, arrays["advantages_f64"])
    same(whole, arrays.get("advantages_zeroed_f64", arrays["advantages_f64"]))


groups = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([0.0, 1.0, 0.1, -0.5, 0.3]), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
        st.lists(st.sampled_from([-0.5, -1.0, -2.25]), min_size=n, max_size=n),
        st.lists(st.integers(1, 3), min_size=n, max_size=n),
    )
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(groups, st.sampled_from(["keep", "zero", "exclude"]), st.booleans(), st.booleans())
def test_against_oracle(group, invalid, first_token, winner_must_be_valid):
    rewards, valid, means, lengths = (np.asarray(x) for x in group)
    rewards, valid, means, lengths = (np.pad(x, (0, 6 - len(x)), mode="edge") for x in (rewards, valid, means, lengths))
    mask = np.arange(3) < lengths[:, None]
    logps = np.where(mask, means[:, None], np.inf)
    cfg = AlgoConfig(invalid=invalid, first_token=first_token, winner_must_be_valid=winner_must_be_valid)
    got = np.asarray(rollout_advantages(record(logps[None], mask[None]), rewards[None].astype(np.float32), valid[None], cfg))[0]
    late = invalid == "zero" and not winner_must_be_valid
    per_sample = oracle.group(rewards.astype(np.float32), valid, invalid if not late else "keep")
    if late and valid.sum() < 2:
        per_sample = np.zeros(6)
    if first_token:
        scores = np.where(valid | (not winner_must_be_valid), means, -np.inf)
        want = oracle.spread(per_sample, scores, lengths, 3)
    else:
        want = per_sample[:, None] * mask
    np.testing.assert_allclose(got, np.where(valid[:, None], want, 0) if late else want, rtol=2e-5, atol=2e-5)


T, F = True, False
EDGES = {
    "all equal": ([1, 1, 1, 1], [T] * 4, "zero", [0, 0, 0, 0]),
    "all equal, not a binary fraction": ([0.1] * 7, [T] * 7, "zero", [0] * 7),
    "equal among the counted": ([0.1, 0.1, 0.1, 1], [T, T, T, F], "exclude", [0] * 4),
    "one survivor": ([1, 0, 0, 1], [T, F, F, F], "zero", [0] * 4),
    "one survivor, excluded": ([1, 0, 0, 1], [T, F, F, F], "exclude", [0] * 4),
    "none": ([1, 0, 0, 1], [F] * 4, "zero", [0] * 4),
    "none, excluded": ([1, 0, 0, 1], [F] * 4, "exclude", [0] * 4),
    "none, kept": ([1, 0], [F] * 2, "keep", [0.70710578, -0.70710578]),
    "invalid in the statistics": ([1, 0, 1, 0], [T, T, F, T], "zero", [0.8660239, -0.8660239, 0, -0.8660239]),
    "invalid out of the statistics": ([1, 0, 1, 0], [T, T, F, T], "exclude", [1.1546985, -0.5773493, 0, -0.5773493]),
}


@pytest.mark.parametrize("name", EDGES)
def test_edge_cases(name):
    rewards, valid, invalid, want = EDGES[name]
    got = np.asarray(group_advantages(np.array([rewards], np.float32), np.array([valid]), invalid=invalid))[0]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_array_equal(got == 0, np.asarray(want) == 0)


def test_lone_survivor_quirk_and_unknown_mode():
    rewards, valid = np.array([[1, 0, 0], [0, 1, 0.0]]), np.array([[T, F, F], [T, F, F]])
    got = group_advantages(rewards, valid, invalid="exclude", lone_survivor="reward")
    assert_rounding(got, np.array([[1 / (1 + 1e-6), 0, 0], [0, 0, 0]]), units=4)
    with pytest.raises(ValueError, match="keep, zero or exclude"):
        group_advantages(rewards, valid, invalid="drop")


def test_first_token_selection():
    """Only the winner keeps its first position; a tie goes to the lowest index; without a winner nothing changes; a later start is its first."""
    advantages = np.array([[1, 2, 1, -1], [1, 2, 1, -1], [-1, -1, 0, 0]], np.float32)
    scores = np.array([[-2, -1, -1, 0], [-1, -np.inf, -2, 0], [0, 0, 0, 0]], np.float32)
    mask = np.ones((3, 4, 3), bool)
    mask[0, 0, 0] = False
    got = np.asarray(token_advantages(advantages, scores, mask))
    want = np.where(mask, advantages[..., None], 0)
    want[0, [2, 3], 0] = want[0, 0, 1] = 0
    want[1, [1, 2, 3], 0] = 0
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(token_advantages(advantages, scores, mask, first_token=False), np.where(mask, advantages[..., None], 0))


def test_winner_score_variants():
    mask = np.array([[[T, T, T, F], [T, F, F, F], [T, T, F, F], [T, T, T, T]]])
    is_latent = np.array([[[T, T, F, F], [T, F, F, F], [F, F, F, F], [T, F, F, F]]])
    logps = np.array([[[-1, -2, -6, np.nan], [-4, np.inf, 0, 0], [-5, -1, -9, -9], [-2, -4, -4, -10.0]]])
    valid = np.array([[T, T, T, F]])
    for name, want in {
        "response_mean": [-3, -4, -3, -np.inf],
        "latent_mean": [-1.5, -4, -np.inf, -np.inf],
        "answer_mean": [-6, -np.inf, -3, -np.inf],
    }.items():
        got = np.asarray(winner_scores(record(logps, mask, is_latent), valid, AlgoConfig(winner_score=name)))
        assert_rounding(got, np.array([want]), units=4, err_msg=name)
    free = winner_scores(record(logps, mask, is_latent), valid, AlgoConfig(winner_must_be_valid=False))
    assert free[0, 3] == -5


def test_winner_scores_leave_out_what_the_policy_did_not_choose():
    """A forced end of thinking is in the mask, not in the loss mask; its log-prob is that of a token that nobody sampled."""
    shape = (1, 2, 3)
    record = Rollout(
        ids=np.zeros((*shape, 1), np.int32),
        scores=np.zeros((*shape, 1), np.float32),
        weights=np.ones((*shape, 1), np.float32),
        is_latent=np.zeros(shape, bool),
        mask=np.ones(shape, bool),
        loss_mask=np.array([[[True, False, True], [True, True, True]]]),
        logps=np.array([[[-1.0, -90.0, -1.0], [-2.0, -2.0, -2.0]]], np.float32),
        finish=np.ones(shape[:2], np.int32),
        chain_len=np.zeros(shape[:2], np.int32),
        thought=np.zeros(shape[:2], bool),
    )
    np.testing.assert_allclose(winner_scores(record, np.ones((1, 2), bool), AlgoConfig()), [[-1.0, -2.0]])


@pytest.mark.parametrize("invalid", ["keep", "zero", "exclude"])
def test_baselines_and_scales_against_their_papers(invalid):
    """Sample by sample in float64: RLOO compares with the mean of the others; without a scale the units are those of the reward."""
    rng = np.random.default_rng(0)
    rewards, valid = rng.normal(size=(20, 6)).astype(np.float32), rng.random((20, 6)) < 0.7
    valid[0], valid[1] = False, np.arange(6) == 2
    counted = valid if invalid == "exclude" else np.ones_like(valid)
    for baseline in ("mean", "leave_one_out"):
        for scale in ("std", "none"):
            want = np.zeros(rewards.shape)
            for b in range(20):
                of = [g for g in range(6) if counted[b, g]]
                for g in of if len(of) > 1 else []:
                    others = [j for j in of if j != g] if baseline == "leave_one_out" else of
                    want[b, g] = rewards[b, g].astype(np.float64) - rewards[b, others].astype(np.float64).mean()
                    want[b, g] /= rewards[b, of].astype(np.float64).std(ddof=1) + 1e-6 if scale == "std" else 1.0
                if invalid == "zero":
                    want[b] *= valid[b] * (valid[b].sum() > 1)
            got = group_advantages(rewards, valid, invalid=invalid, baseline=baseline, scale=scale)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_advantage_of_ones_own_keeps_the_masks():
    from own_advantages import by_rank

    rewards = np.array([[3.0, 1.0, 2.0, 9.0]], np.float32)
    valid = np.array([[True, True, True, False]])
    mask = np.ones((1, 4, 2), bool)
    cfg = AlgoConfig(advantage=by_rank, first_token=False)
    assert cfg.advantage.endswith("own_advantages:by_rank") or cfg.advantage.endswith("own_advantages.py:by_rank")
    got = np.asarray(rollout_advantages(record(np.zeros(mask.shape, np.float32), mask), rewards, valid, cfg))
    np.testing.assert_allclose(got[0, :, 0], [1.0, -1.0, 0.0, 0.0])
    assert hash(cfg) == hash(AlgoConfig(advantage=cfg.advantage, first_token=False))
    for bad, says in ((lambda r, v: r, "no name of its own"), ("nothing", "no function"), ("own_advantages:missing", "not found")):
        with pytest.raises(UserError, match=says):
            rollout_advantages(record(np.zeros(mask.shape, np.float32), mask), rewards, valid, AlgoConfig(advantage=bad))
