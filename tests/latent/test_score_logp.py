"""Value and gradient of a latent step's log-prob. Breaks when a density, its slope or its numerics change, and with it the learning signal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import latent as oracle
from scipy import integrate
from support import golden

from lgrpo.config import LatentConfig
from lgrpo.latent.law import Step
from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gumbel import Gumbel
from lgrpo.latent.logprobs import token_logps
from lgrpo.latent.noise import score_logp

G = golden("score_logp")
OFFICIAL = LatentConfig(law=Gumbel(density="mean", score_gradient="bounded", density_scale="unit"))
EXACT = LatentConfig(law=Exact())
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def latent_logp(c, scores, tokens, weights, scale, advantages=None):
    return c.law.logp(c, Step(None, scores, weights), tokens, scale, advantages=advantages)


def official_logp(logits, case, advantages):
    """The rule of rollout and replay: latent rows by density at temperature 1, the others as a token at T."""
    latent = G[f"{case}_is_latent"]
    ids = np.where(latent[:, None], G[f"{case}_ids"], G[f"{case}_labels"][:, None])
    tokens = token_logps(logits, ids, jnp.where(latent, 1.0, G[f"{case}_temperature"]))
    density = latent_logp(OFFICIAL, G[f"{case}_scores"], tokens, jnp.zeros(ids.shape), jnp.ones(len(ids)), advantages)
    return jnp.where(latent, density, tokens.chosen[:, 0])


@pytest.mark.parametrize(
    ("case", "advantages"), [("a", "none"), ("a", "rand"), ("a", "pos"), ("a", "neg"), ("a", "zero"), ("b", "none"), ("b", "rand")]
)
def test_golden(case, advantages):
    adv = None if advantages == "none" else G[f"{case}_adv_{advantages}"]

    def scalar(logits):
        out = official_logp(logits, case, adv)
        return (out * G[f"{case}_weights"]).sum(), out

    (_, out), grad = jax.jit(jax.value_and_grad(scalar, has_aux=True))(jnp.asarray(G[f"{case}_logits"]))
    np.testing.assert_allclose(out, G[f"{case}_out_f64"], **TOLERANCE)
    name = f"{case}_grad_{advantages}"
    np.testing.assert_allclose(grad, G.get(f"{name}_f64", G[name]), **TOLERANCE)


@pytest.mark.parametrize("density", ["gumbel_mean", "gumbel_weighted", "gumbel_sum", "exact"])
@pytest.mark.parametrize("score_gradient", ["plain", "aligned"])
def test_what_was_recorded_is_constant(density, score_gradient):
    """Scores, weights and advantages come from the rollout: only the policy's log-probs have a gradient."""
    if density == "exact" and score_gradient != "plain":
        return

    def logp(scores, weights, advantages, logps):
        more = {"density": density, "score_gradient": score_gradient, "advantages": advantages, "weights": weights}
        return score_logp(scores, logps, rest_logp=jnp.asarray(-1.0), **more)

    recorded = jnp.array([0.5, -2.2, -3.1]), jnp.array([0.6, 0.3, 0.1]), jnp.asarray(-1.0)
    grads = jax.jit(jax.grad(logp, (0, 1, 2, 3)))(*recorded, jnp.array([-1.0, -1.5, -2.0]))
    assert not any(g.any() for g in grads[:3])
    assert grads[3].all()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_weighted_and_scaled_against_oracle(scale):
    rng = np.random.default_rng(0)
    logps, margins = rng.normal(-3, 1, (6, 4)), rng.normal(1, 1.5, (6, 4))
    weights = rng.dirichlet(np.ones(4), 6)
    scores = logps + margins
    tokens = token_logps(jnp.asarray(np.log(np.eye(4) + 1)), jnp.zeros((4, 1), int), jnp.ones(4))._replace(chosen=jnp.asarray(logps))
    for density, w in (("weighted", weights), ("mean", np.full((6, 4), 0.25)), ("sum", np.ones((6, 4)))):
        got = latent_logp(LatentConfig(law=Gumbel(density=density)), scores, tokens, weights, jnp.full(6, scale))
        # noise of scale s has the density f((u - l) / s) / s
        want = oracle.gumbel_density(scores / scale, logps / scale, w) - w.sum(1) * np.log(
            scale
        )  # a factor 1 / s for each draw that counts
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
        unit = latent_logp(LatentConfig(law=Gumbel(density=density, density_scale="unit")), scores, tokens, weights, jnp.full(6, scale))
        np.testing.assert_allclose(unit, oracle.gumbel_density(scores, logps, w), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("score_gradient", ["plain", "bounded", "aligned"])
@pytest.mark.parametrize("advantage", [1.0, 0.0, -2.0])
def test_slopes(score_gradient, advantage):
    margins = np.array([-3.5, -0.65, 0.3, 4.5])
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    for density, w in (("gumbel_mean", np.full(4, 0.25)), ("gumbel_weighted", weights), ("gumbel_sum", np.ones(4))):

        def f(logps, density=density):
            scores = jnp.asarray(margins - 2.0)
            return score_logp(
                scores,
                logps,
                density=density,
                score_gradient=score_gradient,
                advantages=jnp.asarray(advantage),
                weights=jnp.asarray(weights),
            )

        value, grad = jax.jit(jax.value_and_grad(f))(jnp.full(4, -2.0))
        np.testing.assert_allclose(value, oracle.gumbel_density(margins, np.zeros(4), w), rtol=1e-5)  # the value never changes
        np.testing.assert_allclose(grad, w * [oracle.slope(x, advantage, score_gradient) for x in margins], rtol=1e-5, atol=1e-6)


def test_replaced_gradient_is_finite_where_exp_overflows():
    for kind in ("bounded", "aligned"):
        grad = jax.grad(lambda x, kind=kind: score_logp(-100.0 + 0 * x, x, score_gradient=kind, advantages=jnp.asarray(-1.0)).sum())
        assert np.isfinite(grad(jnp.zeros(3))).all()


def test_unknown_settings_are_refused():
    x = jnp.zeros(2)
    for wrong in (
        {"density": "gauss"},
        {"score_gradient": "odd"},
        {"density": "gumbel_weighted"},
        {"density": "exact", "score_gradient": "bounded"},
    ):
        with pytest.raises(ValueError, match=r"gumbel|plain|weights"):
            score_logp(x, x, **wrong)


@functools.partial(jax.jit, static_argnames="density")
def exact_logp(logits, ids, scores, scale, density=EXACT):
    """The exact density as rollout and replay compute it. logits [N,V], ids and scores [N,K], scale [N]."""
    return latent_logp(density, scores, token_logps(logits, ids, scale, with_rest=True), jnp.zeros(ids.shape), scale)


def test_exact_integrates_to_one():
    """K = 2: one score difference for each ordered pair of ids. K = 3 the same with two."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.2, 5)
    pi = np.exp(oracle.log_softmax(logits))

    def mass(k, heights, measure):
        sets = np.array(list(oracle.ordered_sets(pi, k)))
        ids = np.repeat(sets, len(heights), axis=0)
        logp = exact_logp(np.tile(logits, (len(ids), 1)), ids, np.tile(heights, (len(sets), 1)), jnp.ones(len(ids)))
        return (np.exp(np.asarray(logp, np.float64)).reshape(len(sets), -1) * measure).sum()

    # Gauss-Legendre in y = exp(-difference), 0 < y < 1
    nodes, weights = np.polynomial.legendre.leggauss(24)
    y, w = (nodes + 1) / 2, weights / 2
    pair = np.stack([-np.log(y), np.zeros_like(y)], axis=1)
    assert mass(2, pair, w / y) == pytest.approx(1, abs=2e-5)
    y1, y2 = (x.ravel() for x in np.meshgrid(y, y))
    triple = np.stack([-np.log(y1) - np.log(y2), -np.log(y2), np.zeros_like(y1)], axis=1)
    assert mass(3, triple, np.outer(w, w).ravel() / (y1 * y2)) == pytest.approx(1, abs=2e-5)


def test_exact_integral_by_adaptive_quadrature():
    """The same through scipy and the float64 oracle: what we compare with is itself a density."""
    logits = np.array([1.0, -0.5, 0.2, 2.0, -1.0])
    total = sum(
        integrate.quad(lambda d, ids=ids: np.exp(oracle.exact(logits, list(ids), [0.7 * d, 0.0], 0.7)), 0, 80)[0]
        for ids in oracle.ordered_sets(np.ones(5) / 5, 2)
    )
    assert total == pytest.approx(1, abs=1e-6)


def test_exact_with_one_component_is_the_categorical():
    rng = np.random.default_rng(2)
    logits, ids = rng.normal(0, 3, (32, 9)), rng.integers(0, 9, (32, 1))
    scale = rng.uniform(0.3, 2, 32)
    got = exact_logp(logits, ids, rng.normal(0, 4, (32, 1)), scale)
    np.testing.assert_allclose(got, np.take_along_axis(oracle.log_softmax(logits / scale[:, None]), ids, 1)[:, 0], rtol=1e-5, atol=1e-5)


def rows_for_exact(k, vocab, spread, seed):
    """Rows with scores as the sampler would record them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (16, vocab)).astype(np.float32)
    scale = rng.uniform(0.4, 1.5, 16).astype(np.float32)
    scores = oracle.log_softmax(logits) + scale[:, None] * rng.gumbel(size=logits.shape)
    ids = np.argsort(-scores, axis=1)[:, :k]
    return logits, ids, np.take_along_axis(scores, ids, 1).astype(np.float32), scale


@pytest.mark.parametrize(("k", "vocab", "spread"), [(3, 20, 1.0), (3, 20, 12.0), (10, 300, 3.0), (6, 6, 2.0), (6, 6, 15.0)])
def test_exact_against_oracle(k, vocab, spread):
    """spread 12 to 15: nearly deterministic rows, where 1 - sum(pi) would be rounding; k = vocab: nothing is left over."""
    logits, ids, scores, scale = rows_for_exact(k, vocab, spread, seed=k)
    want = [oracle.exact(*row) for row in zip(logits, ids, scores, scale, strict=True)]
    np.testing.assert_allclose(exact_logp(logits, ids, scores, scale), want, rtol=2e-5, atol=1e-4)
    shifted = exact_logp(logits, ids, scores + 7.25, scale)
    np.testing.assert_allclose(shifted, exact_logp(logits, ids, scores, scale), rtol=2e-5, atol=2e-4)


def test_exact_gradient_against_oracle_differences():
    logits, ids, scores, scale = rows_for_exact(3, 8, 1.5, seed=5)
    grad = jax.jit(jax.grad(lambda x: exact_logp(x, ids, scores, scale).sum()))(jnp.asarray(logits))
    for row in range(4):
        for v in range(8):
            step = np.eye(8)[v] * 1e-5
            high, low = (oracle.exact(logits[row] + sign * step, ids[row], scores[row], scale[row]) for sign in (1, -1))
            assert grad[row, v] == pytest.approx((high - low) / 2e-5, abs=2e-4)


def test_exact_is_finite_in_the_extreme():
    """A policy that has moved far (margins of -100), a banned token (-1e30), and one token with all the mass."""
    logits = np.zeros((4, 6), np.float32)
    logits[0, 0], logits[1, 5], logits[2, 3], logits[3, 2] = 100, 100, -1e30, 200
    ids = np.tile([0, 3, 2], (4, 1))
    scores = np.array([[0, -100, -200], [-1, -2, -3], [-1, -1e30, -1e30], [0, -1, -2]], np.float32)
    value, grad = jax.jit(jax.value_and_grad(lambda x: exact_logp(x, ids, scores, jnp.ones(4)).sum()))(jnp.asarray(logits))
    assert np.isfinite(value) and np.isfinite(grad).all()
