"""Unbiased pass@k. Breaks when a headline number is biased, most of all where n - c < k."""

import itertools

import numpy as np
import pytest
from support import golden

from lgrpo.evaluation.pass_at_k import bootstrap_mean, pass_at_k

G = golden("passk")


def test_golden_table():
    n, c = np.mgrid[:21, :21]
    for i, k in enumerate(G["k_values"]):
        real = c <= n
        got = pass_at_k(n[real], c[real], int(k))
        np.testing.assert_allclose(got, G["table_f64"][..., i][real], atol=1e-12, rtol=0)
    np.testing.assert_allclose(pass_at_k(G["rand_n"], G["rand_c"], G["rand_k"]), G["rand_value_f64"], atol=1e-12, rtol=0)


def test_golden_data_set():
    runs = len(G["dataset_correct"])
    for k, want in zip(G["dataset_ks"], G["dataset_pass_f64"], strict=True):
        got = np.mean(pass_at_k(runs, G["dataset_correct"].sum(0), int(k)))
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_brute_force():
    """Every way to pick k of n samples: the share in which at least one is correct."""
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c > n or k > n:
            continue
        picks = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, picks)) / len(picks), abs=1e-12), (n, c, k)


def test_scalars_and_refusals():
    assert isinstance(pass_at_k(4, 2, 1), float) and np.isnan(pass_at_k(2, 1, 3))
    for wrong in ((3, 4, 1), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match=r"must (lie|be)"):
            pass_at_k(*wrong)


def test_bootstrap_interval():
    values = np.random.default_rng(0).random(400)
    out = bootstrap_mean(values, seed=1)
    assert out["value"] == pytest.approx(values.mean()) and out == bootstrap_mean(values, seed=1)
    half = 1.96 * values.std() / 20
    assert out["high"] - out["value"] == pytest.approx(half, rel=0.15) and out["value"] - out["low"] == pytest.approx(half, rel=0.15)
    with pytest.raises(ValueError, match="no problems"):
        bootstrap_mean([])
