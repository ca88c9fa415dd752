"""The average of first latents, on mixtures made by hand, and the pass that feeds it."""

import jax
import numpy as np
import pytest

from lgrpo.evaluation import closure
from lgrpo.evaluation.closure import average_mixture, closure_metrics, donors
from lgrpo.evaluation.measure import rows_of
from lgrpo.latent.intervene import Intervention, Kind, replace_latents


def test_average_keeps_the_heaviest_and_renormalises():
    ids, weights = average_mixture(np.array([[1, 2], [2, 3]]), np.array([[0.6, 0.4], [0.7, 0.3]]))
    assert ids.tolist() == [2, 1] and weights == pytest.approx([1.1 / 1.7, 0.6 / 1.7])
    ids, weights = average_mixture(np.array([[5, 5], [5, 5]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert ids.tolist() == [5, 5] and weights.tolist() == [1.0, 0.0]


def test_only_problems_with_two_usable_samples_have_donors():
    ids = np.arange(12).reshape(2, 3, 2)
    weights = np.broadcast_to(np.array([0.75, 0.25]), ids.shape)
    several, fed = donors(ids, weights, np.array([[False, True, True], [True, False, False]]))
    assert several.tolist() == [True, False]
    assert fed["mixed"][0][0].tolist() == [2, 4] and fed["mixed"][1][0].tolist() == [0.5, 0.5]
    assert fed["single"][0][0].tolist() == [2, 3] and fed["single"][1][0].tolist() == [0.75, 0.25]
    assert not fed["mixed"][1][1].any()


def test_only_the_first_latent_is_replaced_and_only_with_a_donor():
    how = Intervention(np.full(2, Kind.FIRST, np.int32), np.full((2, 3, 2), 7), np.full((2, 3, 2), 0.5, np.float32), np.array([1, 0]))
    own, weight = np.array([[1, 2], [3, 4]]), np.array([[0.9, 0.1], [0.8, 0.2]], np.float32)
    for step, expected in ((0, [[7, 7], [3, 4]]), (1, own.tolist())):
        ids, weights = jax.device_get(replace_latents(how, np.int32(step), own, weight, own, weight))
        assert ids.tolist() == expected and weights[0].tolist() == pytest.approx([0.5, 0.5] if step == 0 else [0.9, 0.1])


def test_the_pass_feeds_the_average_and_counts(params, cfg, tokenizer, mesh, monkeypatch):
    """Verdicts are invented (a random model is never right): all samples of the first three problems are correct, and later what was fed is seen."""
    fed = []

    def invented(result, batch, how, first, *rest):
        rows = rows_of(result, batch, how, first, *rest)
        if how.samples == 1:
            fed.append(result)
        return [row | {"correct": (n // how.chunk < 3) if how.samples > 1 else n == 0} for n, row in enumerate(rows)]

    monkeypatch.setattr(closure, "rows_of", invented)
    with jax.set_mesh(mesh):
        found = closure_metrics(params, cfg, tokenizer, mesh, problems=8)
    assert found == pytest.approx({"eval/closure_groups": 3.0, "eval/closure_mixed": 1 / 3, "eval/closure_single": 1 / 3})
    mixed, single = fed
    assert np.asarray(mixed.weights[:3, 0]).sum(-1) == pytest.approx(1.0)
    assert not np.array_equal(mixed.weights[:3, 0], single.weights[:3, 0])
    for a, b in zip(jax.tree.leaves(mixed), jax.tree.leaves(single), strict=True):
        np.testing.assert_array_equal(a[3:], b[3:])  # problems without donors run undisturbed
