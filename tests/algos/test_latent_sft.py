"""Labels, targets and losses of supervised training. Breaks when the start that RL needs is taught the wrong mixtures or positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import sft as oracle
from support import END, assert_rounding, golden

from lgrpo.algos.latent_sft import LatentLabels, chain_as_thoughts, noisy_labels, sft_loss, sft_targets, sparse_kl, superposition_labels
from lgrpo.latent.logprobs import token_logps
from lgrpo.latent.noise import gumbel

G = golden("sft")
labels_of = jax.jit(superposition_labels, static_argnames=("k", "compression", "kind"))
targets_of = jax.jit(sft_targets, static_argnames=("think_end_id", "latent"))


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_golden_distillation(case):
    probs, ids, temperature = (G[f"kd_{case}_{name}"] for name in ("teacher_probs", "teacher_ids", "temperature"))

    def loss(logits):
        chosen = token_logps(logits, ids, jnp.full(len(ids), temperature)).chosen
        return temperature**2 * sparse_kl(probs, chosen).mean()

    value, grad = jax.jit(jax.value_and_grad(loss))(G[f"kd_{case}_student_logits"])
    np.testing.assert_allclose(value, G[f"kd_{case}_loss_f64"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, G.get(f"kd_{case}_grad_f64", G[f"kd_{case}_grad"]), rtol=1e-5, atol=1e-5)


def test_kl_ignores_what_has_no_probability():
    grad = jax.grad(lambda x: sparse_kl(jnp.array([0.5, 0.5, 0.0]), x))(jnp.array([-1.0, -2.0, -jnp.inf]))
    assert_rounding(grad, np.array([-0.5, -0.5, 0]), units=4)


def chains(lengths, seed=0, vocab=7):
    """Right-padded random chains with many repeated tokens."""
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    return np.where(mask, rng.integers(4, 4 + vocab, mask.shape), 0).astype(np.int32), mask


def as_dict(ids, probs):
    """{token: weight}; a token must not appear twice with weight."""
    held = [(int(i), float(p)) for i, p in zip(ids, probs, strict=True) if p > 0]
    assert len(dict(held)) == len(held)
    return dict(held)


@pytest.mark.parametrize("kind", ["uniform", "binomial", "ramp"])
def test_superposition_labels(kind):
    lengths, compression = [7, 0, 1, 3, 6], 3
    chain, mask = chains(lengths)
    labels = jax.device_get(labels_of(chain, mask, k=5, compression=compression, kind=kind))
    assert labels.ids.shape == (5, 3, 5)
    for row, length in enumerate(lengths):
        want = oracle.superposition(chain[row, :length].tolist(), compression, kind)
        np.testing.assert_array_equal(labels.mask[row], np.arange(3) < len(want))
        for m, mixture in enumerate(want):
            assert as_dict(labels.ids[row, m], labels.probs[row, m]) == pytest.approx(mixture, abs=1e-6)
            assert (np.diff(labels.probs[row, m]) <= 0).all()  # best first
        assert not labels.probs[row, len(want) :].any()


def test_binomial_is_the_one_of_the_study():
    chain = np.array([[5, 6, 7]], np.int32)
    labels = labels_of(chain, chain > 0, k=3, compression=3, kind="binomial")
    assert as_dict(labels.ids[0, 0], labels.probs[0, 0]) == pytest.approx({6: 0.5, 5: 0.25, 7: 0.25})


def test_chunks_must_fit():
    chain, mask = chains([4])
    with pytest.raises(ValueError, match="compression 4"):
        superposition_labels(chain, mask, k=3, compression=4, kind="uniform")


@pytest.mark.parametrize(("scale", "clamp", "tau"), [(0.7, (-1.0, 1.2), 1.0), (1.5, None, 0.6)])
def test_noisy_labels(scale, clamp, tau):
    """log q plus scaled, clamped noise on the real components, softmax at tau, best first; noise that puts the end of thinking on top is redrawn."""
    rows, count, k = 64, 3, 4
    rng = np.random.default_rng(1)
    probs = np.sort(rng.dirichlet(np.ones(k), (rows, count)))[..., ::-1].astype(np.float32)
    probs[::3, :, 2:] = 0
    probs = probs / probs.sum(-1, keepdims=True)
    ids = np.stack([rng.permutation(8)[:k] for _ in range(rows * count)]).reshape(rows, count, k).astype(np.int32)
    mask = rng.random((rows, count)) < 0.8
    keys = jax.random.split(jax.random.key(3), rows)
    noisy = functools.partial(jax.jit(noisy_labels, static_argnames=("scale", "clamp", "think_end_id", "tau")), clamp=clamp, tau=tau)
    out = jax.device_get(noisy(LatentLabels(ids, probs, mask), keys, scale=scale, think_end_id=END))
    redrawn = [keys, *(jax.vmap(lambda key, n=n: jax.random.fold_in(key, n))(keys) for n in range(1, 30))]
    noise = [scale * np.asarray(gumbel(x, count * k), np.float64).reshape(rows, count, k) for x in redrawn]
    noise = noise if clamp is None else [np.clip(x, *clamp) for x in noise]

    def mixture(row, m, attempt):
        real = probs[row, m] > 0
        logits = (np.log(probs[row, m][real].astype(np.float64)) + noise[attempt][row, m][real]) / tau
        want = np.exp(logits - logits.max())
        return dict(zip(ids[row, m][real].tolist(), want / want.sum(), strict=True))

    spoiled = 0
    for row, m in np.ndindex(rows, count):
        got = as_dict(out.ids[row, m], out.probs[row, m])
        if not mask[row, m]:
            assert got == as_dict(ids[row, m], probs[row, m])
            continue
        tries = (mixture(row, m, n) for n in range(30))
        attempt, want = next((n, w) for n, w in enumerate(tries) if max(w, key=w.get) != END or ids[row, m, 0] == END)
        spoiled += attempt > 0
        assert got == pytest.approx(want, abs=1e-5)
        assert (np.diff(out.probs[row, m]) <= 0).all()
    assert spoiled > 3
    assert (out.ids[..., 0] != ids[..., 0]).any()
    again = noisy(LatentLabels(ids[5:6], probs[5:6], mask[5:6]), keys[5:6], scale=scale, think_end_id=END)
    np.testing.assert_allclose(again.probs[0], out.probs[5], atol=1e-6)  # a row's noise is its own


@pytest.mark.parametrize("latent", [True, False])
def test_target_layout(latent):
    lengths, answers = [7, 0, 1, 5], [2, 3, 1, 3]
    chain, chain_mask = chains(lengths)
    answer, answer_mask = chains(answers, seed=1)
    kind = {"k": 4, "compression": 2, "kind": "ramp"}
    thoughts = labels_of(chain, chain_mask, **kind) if latent else chain_as_thoughts(chain, chain_mask)
    got = jax.device_get(targets_of(thoughts, answer, answer_mask, think_end_id=END, latent=latent))
    assert got.ids.shape[1] == thoughts.ids.shape[1] + 1 + answer.shape[1]
    for row in range(4):
        own = chain[row, : lengths[row]].tolist()
        steps = oracle.superposition(own, 2, "ramp") if latent else [{t: 1.0} for t in own]
        want = oracle.targets(steps, answer[row, : answers[row]].tolist(), END, latent)
        np.testing.assert_array_equal(got.mask[row], np.arange(got.mask.shape[1]) < len(want))
        np.testing.assert_array_equal(got.is_latent[row, : len(want)], [is_latent for _, is_latent in want])
        assert not got.is_latent[row, len(want) :].any()
        for t, (mixture, is_latent) in enumerate(want):
            assert as_dict(got.ids[row, t], got.weights[row, t]) == pytest.approx(mixture, abs=1e-6)
            assert is_latent or got.weights[row, t, 0] == 1  # token steps are scored by column 0


def test_losses_and_their_counts():
    """Cross-entropy over the end of thinking and the answer, KL over latent steps; padding may hold anything."""
    chain, chain_mask = chains([4, 2])
    answer, answer_mask = chains([2, 3], seed=1)
    thoughts = labels_of(chain, chain_mask, k=3, compression=2, kind="uniform")
    targets = targets_of(thoughts, answer, answer_mask, think_end_id=END, latent=True)
    rng = np.random.default_rng(0)
    logps = -rng.exponential(size=targets.ids.shape).astype(np.float32)
    mask, is_latent = np.asarray(targets.mask), np.asarray(targets.is_latent)
    dirty = np.where(mask[..., None], logps, np.float32("nan"))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def losses(logps):
        terms = sft_loss(targets, logps, kl_weight=0.3)
        return sum(term.total for term in terms), terms

    grads, (ce, kl) = losses(dirty)
    tokens = mask & ~is_latent
    assert ce.count == tokens.sum() == 1 + 2 + 1 + 3 and kl.count == is_latent.sum() == 2 + 1
    assert float(ce.total) == pytest.approx(-logps[..., 0][tokens].sum(), rel=1e-5)
    want = sum(oracle.kl(targets.weights[n, t], logps[n, t]) for n, t in np.argwhere(is_latent))
    assert float(kl.total) == pytest.approx(0.3 * want, rel=1e-4)
    assert np.isfinite(grads).all() and not np.asarray(grads)[~mask].any()
