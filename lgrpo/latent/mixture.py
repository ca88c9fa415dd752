"""One latent choice per row: support, noise, the K best tokens, their weights, and the embedding of the mixture (DESIGN section 5)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from lgrpo.latent.noise import gumbel, shape_noise

_NEVER = -jnp.inf


@struct.dataclass
class LatentChoice:
    """K tokens, best first. The branch that was taken gives all three: noisy, or noiseless at the end rule and where noise is off."""

    ids: jax.Array  # int32 [N, K]
    scores: jax.Array  # float32 [N, K]; log-prob plus noise, nats
    weights: jax.Array  # float32 [N, K]; sum to 1
    noisy: jax.Array  # bool [N]; noise was applied


def nucleus(probs: jax.Array, top_p: float | jax.Array) -> jax.Array:
    """Tokens with less than `top_p` mass strictly ahead of them in descending order (ties: lower ids first). probs [N,V] -> bool [N,V].

    Found by bisecting the probability threshold over the bit patterns of float32, which are ordered like the numbers themselves: 31 passes that
    vectorise, where XLA's full sort on CPU costs a hundred times more.
    """
    rows = probs.shape[0]
    top_p = jnp.broadcast_to(jnp.asarray(top_p, jnp.float32), (rows,))[:, None]
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def ahead(threshold: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(bits > threshold, probs, 0.0), axis=-1, keepdims=True)

    def halve(_: int, span: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = span  # mass ahead of `high` is below top_p, ahead of `low` it is not
        middle = low + (high - low) // 2
        inside = ahead(middle) < top_p
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    low = jnp.full((rows, 1), -1, jnp.int32)
    high = jnp.full((rows, 1), 0x3F800001, jnp.int32)  # just above 1.0
    _, high = jax.lax.fori_loop(0, 31, halve, (low, high))
    # `high` is the smallest bit pattern whose strictly larger entries hold less than top_p: tokens above it are in, those equal to it may be.
    tied = bits == high
    rank = jnp.cumsum(tied, axis=-1) - 1
    return (bits > high) | (tied & (ahead(high) + rank * jnp.where(tied, probs, 0.0) < top_p))


def _mark(ids: jax.Array, vocab: int) -> jax.Array:
    """ids [N,K] -> bool [N,V]."""
    rows = jnp.arange(ids.shape[0])[:, None]
    return jnp.zeros((ids.shape[0], vocab), bool).at[rows, ids].set(True)


def _per_row(value: float | jax.Array, rows: int) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (rows,))[:, None]


def sample_latent(
    logits: jax.Array,
    key: jax.Array,
    *,
    k: int,
    think_end_id: int,
    top_p: float | jax.Array = 0.95,
    tau: float | jax.Array = 1.0,
    noise_scale: float | jax.Array = 1.0,
    one_sided: bool = True,
    clamp: tuple[float, float] | None = (-1.5, 3.0),
    delta: float = 0.0,
    order: Literal["perturb_then_topk", "topk_then_perturb"] = "perturb_then_topk",
    end_rule: Literal["argmax", "sampled"] = "argmax",
    raw_noise: jax.Array | None = None,
) -> LatentChoice:
    """One latent step for every row.

    logits [N, V] (any float type; -inf forbids a token). key: one key, or keys [N]. top_p, tau and noise_scale are scalars or [N]; a row with
    noise_scale 0 is noise-free. raw_noise [N, V] replaces the standard Gumbel draw. Returns LatentChoice.
    Errors: ValueError when k does not lie in 1..V. Source: paper section on one-sided noise; tests/golden/sampler.npz.
    """
    rows, vocab = logits.shape
    if not 1 <= k <= vocab:
        raise ValueError(f"k={k} does not lie in 1..{vocab}, the size of the vocabulary")
    logits = logits.astype(jnp.float32)
    logps = jax.nn.log_softmax(logits, axis=-1)
    plain_logits, plain_ids = jax.lax.top_k(logits, k)
    if raw_noise is None:
        raw_noise = gumbel(key if key.ndim else jax.random.split(key, rows), vocab)
    scale = _per_row(noise_scale, rows)
    perturbed = logps + shape_noise(raw_noise, clamp=clamp, one_sided=one_sided, delta=delta, scale=scale)
    if order == "topk_then_perturb":
        perturbed = jnp.where(_mark(plain_ids, vocab), perturbed, _NEVER)
    elif not (isinstance(top_p, float) and top_p >= 1.0):
        perturbed = jnp.where(nucleus(jnp.exp(logps), top_p) | _mark(plain_ids, vocab), perturbed, _NEVER)
    noisy_scores, noisy_ids = jax.lax.top_k(perturbed, k)
    noisy = scale[:, 0] > 0
    if end_rule == "argmax":
        noisy &= plain_ids[:, 0] != think_end_id
    pick = noisy[:, None]
    weights = jnp.where(pick, jax.nn.softmax(noisy_scores / _per_row(tau, rows), axis=-1), jax.nn.softmax(plain_logits, axis=-1))
    plain_scores = jnp.take_along_axis(logps, plain_ids, axis=-1)
    return LatentChoice(
        ids=jnp.where(pick, noisy_ids, plain_ids).astype(jnp.int32),
        scores=jnp.where(pick, noisy_scores, plain_scores),
        weights=weights,
        noisy=noisy,
    )


def embed_mixture(table: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_k weights_k table[ids_k], accumulated in float32. table [V,D], ids and weights [*b,K] -> [*b,D] in the table's type.

    One component at a time, so that the [*b, K, D] tensor never exists.
    """
    weights = weights.astype(jnp.float32)
    total = jnp.zeros((*ids.shape[:-1], table.shape[-1]), jnp.float32)
    for component in range(ids.shape[-1]):
        total = total + weights[..., component, None] * table[ids[..., component]].astype(jnp.float32)
    return total.astype(table.dtype)
