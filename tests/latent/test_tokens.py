"""Ordinary sampling. Breaks when answers are drawn from another distribution than the one the loss scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import latent as oracle
from support import chi_square

from lgrpo.config import AnswerConfig
from lgrpo.latent import draw as drawing
from lgrpo.latent.tokens import sample_token

ROWS = 20_000
LOGITS = np.array([0.3, -np.inf, 2.0, -4.0, 1.9, 0.0, -np.inf, 1.0, -0.5, -np.inf], np.float32)


@functools.partial(jax.jit, static_argnames="cfg")
def draw(logits, key, cfg):
    """ROWS tokens from one row of logits."""
    return sample_token(jnp.broadcast_to(logits, (ROWS, logits.shape[-1])), jax.random.split(key, ROWS), cfg)


def law(logits, temperature, top_p=1.0, top_k=0):
    """softmax(z / T), cut to the top_k best and then to the nucleus of what remains, renormalised."""
    z = np.asarray(logits, np.float64) / temperature
    if top_k:
        z = np.where(np.argsort(np.argsort(-z, kind="stable"), kind="stable") < top_k, z, -np.inf)
    probs = np.exp(oracle.log_softmax(z))
    probs = np.where(oracle.nucleus(probs, top_p), probs, 0) if top_p < 1 else probs
    return probs / probs.sum()


@pytest.mark.parametrize(
    "cfg",
    [
        AnswerConfig(),
        AnswerConfig(temperature=0.6),
        AnswerConfig(temperature=1.7, top_k=4),
        AnswerConfig(temperature=0.9, top_p=0.8),
        AnswerConfig(temperature=1.3, top_p=0.7, top_k=3),
        AnswerConfig(top_k=1),
        AnswerConfig(top_p=1e-6),
        AnswerConfig(top_k=50),
    ],
    ids=str,
)
def test_frequencies(cfg):
    got = np.bincount(draw(LOGITS, jax.random.key(1), cfg), minlength=10)
    probs = law(LOGITS, cfg.temperature, cfg.top_p, cfg.top_k)
    if (probs > 0).sum() == 1:
        assert got[probs.argmax()] == ROWS
    else:
        assert chi_square(got, probs) > 1e-3  # which also fails when an impossible token appears


def test_greedy():
    logits = jnp.asarray(np.stack([LOGITS, LOGITS[::-1]]))
    assert sample_token(logits, jax.random.split(jax.random.key(0), 2), AnswerConfig(sampler="greedy")).tolist() == [2, 7]


@pytest.mark.parametrize("where", ["everywhere", "at the end"])
def test_impossible_tokens_are_never_drawn(where, monkeypatch):
    """Every draw that falls on a boundary of the cumulative sum, where rounding decides. Half of a large vocabulary is impossible."""
    rng = np.random.default_rng(0)
    vocab = 2000
    logits = rng.normal(0, 2, vocab).astype(np.float32)
    logits[rng.random(vocab) < 0.5 if where == "everywhere" else np.arange(vocab) > 1250] = -np.inf
    probs = jax.nn.softmax(jnp.asarray(logits))
    cdf = np.asarray(jnp.cumsum(jnp.broadcast_to(probs, (vocab, vocab)), axis=-1))[0]
    uniform = np.clip(cdf / cdf[-1] + np.float32(1e-7) * rng.integers(-1, 2, vocab), 0, 1 - 2**-24).astype(np.float32)
    monkeypatch.setattr(drawing.jax.random, "uniform", lambda key, shape, dtype: jnp.broadcast_to(key, shape))
    got = sample_token(jnp.broadcast_to(logits, (vocab, vocab)), jnp.asarray(uniform), AnswerConfig())
    assert np.isfinite(logits[np.asarray(got)]).all()


def test_rows_depend_on_their_own_key_only():
    keys = jax.random.split(jax.random.key(2), 8)
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 1, (8, 50)), jnp.float32)
    sample = jax.jit(sample_token, static_argnames="cfg")
    together = sample(logits, keys, cfg=AnswerConfig())
    alone = [int(sample(logits[n : n + 1], keys[n : n + 1], cfg=AnswerConfig())[0]) for n in range(8)]
    assert together.tolist() == alone


@pytest.mark.parametrize("size", [64, 1024])
def test_inverse_cdf_never_lands_on_what_has_no_mass(size):
    """Targets on every step of the cumulated sum and an ulp beside it, and just below 0: a parallel cumsum is not monotone."""
    rng = np.random.default_rng(0)
    mass = rng.exponential(size=size).astype(np.float32)
    mass[rng.random(size) < 0.5] = 0
    mass[0] = 0
    cdf = np.asarray(jnp.cumsum(jnp.broadcast_to(mass, (size, size)), axis=-1))[0]
    targets = np.concatenate([np.nextafter(cdf, np.float32(side)) for side in (-1, 1e9)] + [cdf, np.float32([-1e-9, 0, 2 * cdf[-1]])])
    got = np.asarray(drawing._locate(jnp.broadcast_to(mass, (len(targets), size)), jnp.asarray(targets)))
    assert (mass[got] > 0).all()
