"""pass@k, votes, intervals and paired tests against brute force and against scipy."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy import stats

from lgrpo.evaluation.compare import find, paired, sign_test
from lgrpo.evaluation.pass_at_k import (
    bootstrap_mean,
    bootstrap_weights,
    maj_curve,
    mean_interval,
    pass_at_k,
    pass_curve,
    ratio_interval,
    wilson_interval,
)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_counts_subsets(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(range(n), k))
            assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(i < c for i in s) for s in subsets]), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(64, 1, 32), (64, 63, 1), (1000, 3, 100), (1000, 1, 1), (4096, 2, 1)])
def test_pass_at_k_is_exact_for_many_samples(n, c, k):
    assert pass_at_k(n, c, k) == pytest.approx(float(1 - Fraction(comb(n - c, k), comb(n, k))), rel=1e-9)


def test_the_edges_of_pass_at_k():
    assert pass_at_k(64, 0, 7) == 0.0 and pass_at_k(64, 64, 1) == 1.0
    assert np.isnan(pass_at_k(3, 1, 4)) and pass_at_k(3, 3, 3) == 1.0
    assert pass_at_k([4, 4], [1, 2], [[1], [2]]).tolist() == pytest.approx(np.array([[0.25, 0.5], [0.5, 5 / 6]]))
    assert isinstance(pass_at_k(4, 1, 1), float) and pass_at_k(np.zeros((0, 2), int), 0, 1).shape == (0, 2)
    for bad in ((3, 4, 1), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="must"):
            pass_at_k(*bad)


def test_the_whole_curve_is_fast_and_monotone():
    correct = (np.random.default_rng(0).random((1319, 64)) < 0.3).astype(float)
    start = time.perf_counter()
    curve = pass_curve(correct)
    assert time.perf_counter() - start < 10  # measured: 15 ms; a hang guard, not a benchmark
    assert (np.diff(curve, axis=1) >= -1e-12).all()
    np.testing.assert_allclose(curve[:, 0], correct.mean(1), atol=1e-12)
    np.testing.assert_array_equal(curve[:, -1], correct.any(1))


def test_votes_against_all_subsets():
    keys = ["a", "a", "b", None, "c", "b"]
    correct = np.array([[0, 0, 1, 0, 0, 1]], float)
    exact = []
    for k in range(1, 7):
        credits = []
        for subset in itertools.combinations(range(6), k):
            votes = [keys[i] for i in subset if keys[i] is not None]
            top = max((votes.count(v) for v in votes), default=0)
            winners = {v for v in votes if votes.count(v) == top}
            credits.append(("b" in winners) / max(len(winners), 1))
        exact.append(np.mean(credits))
    found = maj_curve([keys], correct, orders=6000)[0]
    np.testing.assert_allclose(found, exact, atol=0.02)
    assert found[0] == exact[0] and found[-1] == exact[-1] == 0.5


def test_correct_answers_are_one_vote_however_they_are_written():
    correct = np.array([[1, 1, 0, 0, 0]], float)
    assert maj_curve([["1/2", "\\frac{1}{2}", "3", "4", "5"]], correct)[0, -1] == 1.0
    assert maj_curve([["1/2", "\\frac{1}{2}", "3", "3", "3"]], correct)[0, -1] == 0.0
    assert (maj_curve([[None] * 5], np.zeros((1, 5))) == 0).all()


def test_bootstrap_intervals():
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    found = bootstrap_mean(values, resamples=4000)
    assert found["value"] == pytest.approx(values.mean())
    half = 1.96 * values.std(ddof=1) / 20
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)
    with pytest.raises(ValueError, match="problems"):
        bootstrap_mean([])
    weights = bootstrap_weights(50, 100)
    assert (weights.sum(1) == 50).all() and weights.min() == 0
    np.testing.assert_array_equal(weights, bootstrap_weights(50, 100))
    assert bootstrap_mean([1.0] * 7) == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert mean_interval(np.ones(50), weights)["low"] == 1.0
    assert ratio_interval(np.ones(50), np.full(50, 2.0), weights) == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert ratio_interval(np.zeros(50), np.zeros(50), weights) is None
    rare = ratio_interval(np.eye(50)[0], np.eye(50)[0], weights)  # some resamples hold nothing to divide by
    assert rare == {"value": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (8, 3), (40, 60), (700, 600)])
def test_sign_test_is_the_exact_binomial(better, worse):
    found = sign_test(np.array([1.0] * better + [-0.5] * worse + [0.0] * 9))
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert found[:2] == (better, worse) and found[2] == pytest.approx(expected)


def test_a_paired_difference_is_narrower_than_two_separate_ones():
    rng = np.random.default_rng(0)
    a = (rng.random(300) < 0.5).astype(float)
    b = np.where(rng.random(300) < 0.1, 1.0, a)
    found = paired(a, b, resamples=2500)
    assert found["difference"]["value"] == pytest.approx((b - a).mean())
    assert found["difference"]["low"] > 0 and found["p"] < 0.01 and found["worse"] == 0
    assert found["difference"]["high"] - found["difference"]["low"] < 0.5 * (found["a"]["high"] - found["a"]["low"])


def test_intervals_of_few_problems_cover_the_truth():
    """30 problems, 97 % right: a bootstrap is [1, 1] whenever all are right, and covers 59 of 100."""
    rng = np.random.default_rng(0)
    truth, hits = 0.97, []
    for _ in range(600):
        found = wilson_interval((rng.random(30) < truth).astype(float))
        hits.append(found["low"] <= truth <= found["high"])
    assert np.mean(hits) > 0.9
    assert wilson_interval(np.ones(30))["low"] < 0.9
    # Wilson's closed form for coins, and narrower where a value is a mean over samples.
    coins, means = np.repeat([1.0, 0.0], [24, 6]), np.full(30, 0.8) + np.tile([0.05, -0.05], 15)
    p, n, z = 0.8, 29, 1.959964
    low = (p + z * z / (2 * n) - z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)) / (1 + z * z / n)
    np.testing.assert_allclose(wilson_interval(coins)["low"], low, rtol=1e-3)
    assert wilson_interval(means)["low"] > 0.75


def test_a_workdir_stands_for_its_own_evaluation_whatever_lies_beside_it(tmp_path):
    for folder in ("a/eval", "a/held_out", "b/eval", "suite/svamp", "suite/gsm8k"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "eval.jsonl").touch()
    found = {name: {data: file.parent.name for data, file in find(tmp_path / name).items()} for name in ("a", "b", "suite")}
    assert found == {"a": {"": "eval", "held_out": "held_out"}, "b": {"": "eval"}, "suite": {"gsm8k": "gsm8k", "svamp": "svamp"}}
