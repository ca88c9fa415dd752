"""The clipped loss and the k3 KL. Breaks when a clip, a mean or a mask changes, or when padding reaches the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import change, fresh_state, golden, params, tiny, train_batch

from lgrpo.algos.policy_loss import k3_kl, policy_loss, sequence_weights
from lgrpo.train.steps.rl import train_step

G = golden("policy_loss")
CLIP = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@functools.partial(jax.jit, static_argnames="negative_weight")
def loss_and_grad(logps, old, advantages, mask, negative_weight=1.0):
    def f(x):
        loss, metrics = policy_loss(x, old, advantages, mask, negative_weight=negative_weight, **CLIP)
        return loss.value(), {name: m.value() for name, m in metrics.items()}

    return jax.jit(jax.value_and_grad(f, has_aux=True))(logps)


@jax.jit
def kl_and_grad(logps, reference, mask):
    return jax.jit(jax.value_and_grad(lambda x: k3_kl(x, reference, mask).value()))(logps)


def inputs(case):
    return [G[f"{case}_{name}"] for name in ("log_prob", "old_log_prob", "advantages", "mask")]


@pytest.mark.parametrize("case", ["a", "b"])
def test_golden(case):
    (loss, metrics), grad = loss_and_grad(*inputs(case))
    np.testing.assert_allclose(loss, G[f"{case}_pg_loss_f64"], **TOLERANCE)
    np.testing.assert_allclose(grad, G[f"{case}_grad_pg_f64"], **TOLERANCE)
    for ours, theirs in {"clip_frac": "clipfrac", "clip_frac_lower": "clipfrac_lower", "kl_k1": "kl"}.items():
        np.testing.assert_allclose(metrics[f"policy/{ours}"], G[f"{case}_{theirs}_f64"], err_msg=ours, **TOLERANCE)
    logps, old, _, mask = inputs(case)
    ratio = np.exp(logps - old)[mask]
    np.testing.assert_allclose([metrics["policy/ratio"], metrics["policy/ratio_max"]], [ratio.mean(), ratio.max()], rtol=1e-5)
    (loss, _), grad = loss_and_grad(*inputs(case), negative_weight=0.5)
    np.testing.assert_allclose(loss, G[f"{case}_pg_loss_nw05_f64"], **TOLERANCE)
    np.testing.assert_allclose(grad, G[f"{case}_grad_pg_nw05_f64"], **TOLERANCE)


@pytest.mark.parametrize("case", ["a", "b"])
def test_golden_kl(case):
    logps, reference, mask = (G[f"{case}_{name}"] for name in ("log_prob", "ref_log_prob", "mask"))
    value, grad = kl_and_grad(logps, reference, mask)
    np.testing.assert_allclose(value, G[f"{case}_low_var_kl_mean_f64"], **TOLERANCE)
    np.testing.assert_allclose(grad, G[f"{case}_grad_low_var_kl_mean_f64"], **TOLERANCE)
    each = jax.vmap(jax.vmap(lambda x, y: k3_kl(x, y, jnp.ones((), bool)).total))(logps, reference)
    np.testing.assert_allclose(each, G[f"{case}_low_var_kl_f64"], **TOLERANCE)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_masked_slots_of_the_losses(poison):
    *values, mask = inputs("a")
    reference = G["a_ref_log_prob"]
    assert not mask.all()
    clean = loss_and_grad(*[np.where(mask, x, 0) for x in values], mask), kl_and_grad(np.where(mask, values[0], 0), reference, mask)
    dirty = (
        loss_and_grad(*[np.where(mask, x, poison) for x in values], mask),
        kl_and_grad(np.where(mask, values[0], poison), reference, mask),
    )
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    empty, _ = loss_and_grad(*[np.full_like(x, poison) for x in values], np.zeros_like(mask))
    assert all(x == 0 for x in jax.tree.leaves(empty))


def test_far_ratios_stay_finite():
    far = np.array([[200.0, -200.0, 200.0, -200.0]], np.float32)
    (loss, _), grad = loss_and_grad(far, np.zeros_like(far), np.array([[1, 1, -1, -1]], np.float32), np.ones((1, 4), bool))
    assert np.isfinite(loss) and np.isfinite(grad).all()


def test_asymmetric_clip():
    ratio = np.array([[0.4, 0.7, 1.3, 1.6]], np.float32)
    for sign, want in ((1, -np.array([0.4, 0.7, 1.3, 1.4])), (-1, np.array([0.5, 0.7, 1.3, 1.6]))):
        got = policy_loss(np.log(ratio), np.zeros((1, 4)), np.full((1, 4), sign), np.ones((1, 4), bool), clip_low=0.5, clip_high=0.4)[0]
        assert float(got.total) == pytest.approx(want.sum(), rel=1e-5)


def gspo(logps, old, advantages, mask, low, high):
    """GSPO's objective in float64, row by row (arXiv 2507.18071, equation 5), negated: the mean over completions."""
    total = 0.0
    for lp, o, a, m in zip(np.float64(logps), np.float64(old), advantages, mask, strict=True):
        ratio = np.exp((lp - o)[m].mean())
        total -= min(ratio * a[m][0], np.clip(ratio, 1 - low, 1 + high) * a[m][0])
    return total / len(mask)


def test_sequence_ratios_are_those_of_gspo():
    """Value and gradient, for advantages that are one number a row. Rows have different lengths; what is masked is garbage."""
    rng = np.random.default_rng(0)
    mask = np.arange(7) < np.array([7, 3, 1, 5, 6, 2])[:, None]
    old = rng.normal(size=mask.shape).astype(np.float32) - 2
    logps = (old + 0.3 * rng.normal(size=mask.shape)).astype(np.float32)
    advantages = np.repeat(np.array([1, -1, 0.5, -2, 1.5, -0.5])[:, None], 7, 1).astype(np.float32)
    dirty = np.where(mask, logps, np.nan)

    def loss(x):
        kw = {"clip_low": 0.1, "clip_high": 0.15, "dual_clip": 1e9, "ratio_of": "sequence", "weights": sequence_weights(jnp.asarray(mask))}
        return policy_loss(x, old, advantages, mask, **kw)[0].value()

    value, grad = jax.device_get(jax.jit(jax.value_and_grad(loss))(dirty))
    assert float(value) == pytest.approx(gspo(logps, old, advantages, mask, 0.1, 0.15), rel=1e-5)
    for row, column in np.argwhere(mask):
        up, down = (logps.astype(np.float64) for _ in range(2))
        up[row, column] += 1e-6
        down[row, column] -= 1e-6
        want = (gspo(up, old, advantages, mask, 0.1, 0.15) - gspo(down, old, advantages, mask, 0.1, 0.15)) / 2e-6
        assert float(grad[row, column]) == pytest.approx(want, rel=1e-3, abs=1e-6)
    assert not np.asarray(grad)[~mask].any()


def test_mean_over_completions_against_float64():
    logps, old, advantages, mask = (np.asarray(x) for x in inputs("a"))
    got = jax.jit(lambda *rows: policy_loss(*rows, weights=sequence_weights(rows[-1]), **CLIP)[0])(logps, old, advantages, mask)
    one = jax.jit(lambda *row: policy_loss(*row, **CLIP)[0])
    each = [one(*(x[i : i + 1] for x in (logps, old, advantages, mask))) for i in range(len(mask)) if mask[i].any()]
    assert float(got.count) == pytest.approx(len(each)) and float(got.value()) == pytest.approx(
        np.mean([float(m.value()) for m in each]), rel=1e-5
    )


def test_a_step_with_sequence_ratios_does_not_depend_on_slices():
    cfg = tiny(model__n_layers=1, rollout__max_new_tokens=6, algo__ratio="sequence", algo__loss_mean="sequence", algo__kl_coef=0.1)
    cfg = change(cfg, train__diagnostics="off")
    batch = train_batch(cfg)
    outs = [train_step(fresh_state(cfg), batch, cfg=change(cfg, train__microbatch=size))[1] for size in (0, 2)]
    for name in ("policy/loss", "policy/ratio", "policy/kl_k3", "grad/norm"):
        assert float(outs[0][name]) == pytest.approx(float(outs[1][name]), rel=1e-4, abs=1e-6), name
    assert float(outs[0]["grad/norm"]) > 0


def poisoned(batch, poison):
    """Garbage wherever the learner must not look: ungenerated steps, and the loss's inputs on generated but masked ones."""
    record, mask, counted = batch.rollout, batch.rollout.mask, batch.loss_mask
    wide = mask[..., None]
    record = record.replace(
        ids=jnp.where(wide, record.ids, -100),
        scores=jnp.where(wide & record.is_latent[..., None], record.scores, poison),
        weights=jnp.where(wide, record.weights, poison),
        is_latent=record.is_latent | ~mask,
        logps=jnp.where(counted, record.logps, poison),
    )
    return batch.replace(rollout=record, advantages=jnp.where(counted, batch.advantages, poison))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_masked_slots_of_a_whole_step(poison):
    """bounded score gradient, KL and `exclude`: every path by which a masked number could come in. Bit for bit."""
    cfg = tiny(rollout__latent__law__score_gradient="bounded", rollout__latent__max_latent=2, algo__kl_coef=0.1, algo__invalid="exclude")
    cfg = change(cfg, optim__lr=1e-2)
    batch = train_batch(cfg)
    assert (batch.rollout.mask & ~batch.loss_mask).any() and not batch.rollout.mask.all()
    other = params(cfg.model, 1)  # moved away from the behaviour, so that no term is trivially zero
    outs = []
    for one in (batch, poisoned(batch, poison)):
        state = fresh_state(cfg, other).replace(reference=jax.tree.map(jnp.array, params(cfg.model)))
        outs.append(jax.device_get(train_step(state, one, cfg=cfg)))
    assert outs[0][1]["grad/norm"] > 1e-3 and outs[0][0].skipped == 0
    jax.tree.map(np.testing.assert_array_equal, *outs)
