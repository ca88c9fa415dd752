"""Gumbel noise and the log-probs of what is drawn with it (DESIGN section 5; paper equations 12-13)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from lgrpo.bounds import ScoreGradient

Over = Literal["mean", "weighted", "sum"]
_TINY = 1e-30


def gumbel(keys: jax.Array, vocab: int) -> jax.Array:
    """Standard Gumbel draws, float32 [N, V], row n from keys[n], so a row does not depend on its neighbours."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (vocab,), jnp.float32))(keys)


def shape_noise(raw: jax.Array, *, clamp: tuple[float, float] | None, one_sided: bool, delta: float, scale: jax.Array) -> jax.Array:
    """Clamp, shift, scale: the noise that enters the scores. raw [N, V], scale [N, 1].

    One-sided noise adds a constant to every entry, so it changes neither which tokens are chosen nor their weights, only where the density is
    evaluated. Errors: ValueError when one-sided noise has no clamp.
    """
    noise = raw if clamp is None else jnp.clip(raw, clamp[0], clamp[1])
    if one_sided:
        if clamp is None:
            raise ValueError("one-sided noise needs a clamp: its lower end sets the shift")
        noise = noise - clamp[0] + delta
    return noise * scale


def _gumbel_terms(margin: jax.Array, score_gradient: ScoreGradient, advantages: jax.Array | None) -> jax.Array:
    """Standard Gumbel log-density at margin x = score - logp [*b, K]; the slope in logp is 1 - exp(-x) unless the score gradient says otherwise."""
    value = -margin - jnp.exp(-margin)
    if score_gradient == "plain" or advantages is None:
        return value
    # h has slope exp(x) - 1 in logp: the sign of the plain slope for x < 0, but bounded. Its negative is the paper's reversed sign.
    below = jnp.minimum(margin, 0.0)
    bounded = below - jnp.exp(below)
    proxy = bounded if score_gradient == "bounded" else -bounded
    replaced = jax.lax.stop_gradient(value) + proxy - jax.lax.stop_gradient(proxy)
    # The unused branch must stay finite in the backward pass: exp(-x) overflows for very negative margins.
    needed = (margin < 0) & (advantages[..., None] <= 0)
    safe = jnp.where(needed, 0.0, margin)
    return jnp.where(needed, replaced, -safe - jnp.exp(-safe))


def gumbel_logp(
    scores: jax.Array,
    logps: jax.Array,
    *,
    over: Over = "mean",
    score_gradient: ScoreGradient = "plain",
    advantages: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Standard Gumbel log-density of score minus log-prob, over the components: their mean, by `weights`, or their sum. [*b, K] -> [*b], nats.

    scores and weights are constants. advantages [*b] only choose the gradient of components below their log-prob; None leaves it plain.
    Errors: ValueError for an unknown name, or missing weights.
    """
    if over not in get_args(Over):
        raise ValueError(f"over={over!r} is unknown; use mean, weighted or sum")
    if score_gradient not in get_args(ScoreGradient):
        raise ValueError(f"score_gradient {score_gradient!r} is unknown; use plain, bounded or aligned")
    terms = _gumbel_terms(jax.lax.stop_gradient(scores) - logps, score_gradient, advantages)
    if over == "mean":
        return jnp.mean(terms, axis=-1)
    if over == "sum":
        return jnp.sum(terms, axis=-1)
    if weights is None:
        raise ValueError("a density over weighted components needs the mixture weights")
    return jnp.sum(jax.lax.stop_gradient(weights) * terms, axis=-1)


def exact_logp(scores: jax.Array, logps: jax.Array, rest_logp: jax.Array | None = None) -> jax.Array:
    """Log-density of the K best perturbed scores up to a common shift, for unclamped noise on the whole vocabulary. [*b, K] -> [*b], nats.

    scores a_k = u_k / s (best first, constants) and logps log pi_k of softmax(l / s). With a_K the smallest score:
    sum(log pi_k - a_k) - K log(sum pi_k e^-a_k + e^-a_K (1 - sum pi_k)) + log (K-1)!. rest_logp [*b]: the log of the mass of all tokens that were
    not chosen; without it 1 - sum(exp(logps)) is used, whose rounding shows where the policy is nearly deterministic.
    """
    k = scores.shape[-1]
    scores = jax.lax.stop_gradient(scores)
    lowest = jnp.min(scores, axis=-1, keepdims=True)
    height = scores - lowest  # the density does not depend on the shift
    if rest_logp is None:
        rest_logp = jnp.log(jnp.maximum(1.0 - jnp.sum(jnp.exp(logps), axis=-1), _TINY))
    # In logs: where the policy is nearly deterministic every term of the sum may be far below the smallest float.
    log_mass = jax.nn.logsumexp(jnp.concatenate([logps - height, rest_logp[..., None]], axis=-1), axis=-1)
    return jnp.sum(logps - height, axis=-1) - k * log_mass + math.lgamma(k)


def score_logp(
    scores: jax.Array,
    logps: jax.Array,
    *,
    density: Literal["gumbel_mean", "gumbel_weighted", "gumbel_sum", "exact"] = "gumbel_mean",
    score_gradient: ScoreGradient = "plain",
    advantages: jax.Array | None = None,
    weights: jax.Array | None = None,
    rest_logp: jax.Array | None = None,
) -> jax.Array:
    """gumbel_logp and exact_logp under one name and by the density's: a stable entry point.

    Errors: ValueError for an unknown density, missing weights, or `exact` with a score gradient other than plain.
    Source: paper equation 12-13; golden vectors in tests/golden/score_logp.npz; the exact density in docs/deviations.md.
    """
    scores, logps = jnp.asarray(scores, jnp.float32), jnp.asarray(logps, jnp.float32)
    kind, _, over = density.partition("_")
    if density == "exact":
        if score_gradient != "plain":
            raise ValueError("density 'exact' has one gradient; score_gradient must be 'plain'")
        return exact_logp(scores, logps, rest_logp)
    if kind != "gumbel" or over not in get_args(Over):
        raise ValueError(f"density {density!r} is unknown; use gumbel_mean, gumbel_weighted, gumbel_sum or exact")
    return gumbel_logp(scores, logps, over=over, score_gradient=score_gradient, advantages=advantages, weights=weights)
