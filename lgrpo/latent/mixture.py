"""One latent choice per row: support, noise, the K best tokens, their weights, and the embedding of the mixture (DESIGN section 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from lgrpo.latent.draw import Masses, block_masses, gumbel_top_k, leading, top_k
from lgrpo.latent.noise import gumbel, shape_noise
from lgrpo.types import Array

_NEVER = -jnp.inf
_CANDIDATES = 256  # at least so many tokens get noise of their own where the vocabulary is large


@struct.dataclass
class LatentChoice:
    """K tokens, best first. The branch that was taken gives all three: noisy, or noiseless at the end rule and where noise is off."""

    ids: jax.Array  # int32 [N, K]
    scores: jax.Array  # float32 [N, K]; log-prob plus noise, nats
    weights: jax.Array  # float32 [N, K]; sum to 1
    noisy: jax.Array  # bool [N]; noise was applied
    masses: Masses | None = (
        None  # of logits / noise scale (1 where that is 0), if the draw needed them; scoring at that temperature reuses them
    )


def _bisect(
    low: jax.Array, high: jax.Array, holds: Callable[[jax.Array], jax.Array], passes: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`low` and `high` after so many halvings of what lies between. int [N,1]; `holds`, falling from True to False, would hold at low, not at high."""

    def halve(_: int, span: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = span
        middle = low + (high - low) // 2
        yes = holds(middle)
        return jnp.where(yes, middle, low), jnp.where(yes, high, middle)

    return jax.lax.fori_loop(0, passes, halve, (low, high))


def nucleus(probs: jax.Array, top_p: float | jax.Array, wanted: bool | jax.Array = True) -> jax.Array:
    """Tokens with less than `top_p` mass strictly ahead of them in descending order (ties: lower ids first). probs [N,V] -> bool [N,V].
    wanted: bool []; where it is false the result is not to be used, and costs nothing.

    Found by bisecting the probability threshold over the bit patterns of float32, which are ordered like the numbers themselves: 31 passes that
    vectorise, where XLA's full sort on CPU costs a hundred times more.
    """
    rows = probs.shape[0]
    top_p = jnp.broadcast_to(jnp.asarray(top_p, jnp.float32), (rows,))[:, None]
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def ahead(threshold: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(bits > threshold, probs, 0.0), axis=-1, keepdims=True)

    low = jnp.full((rows, 1), -1, jnp.int32)
    high = jnp.full((rows, 1), 0x3F800001, jnp.int32)  # just above 1.0
    _, high = _bisect(low, high, lambda middle: ~(ahead(middle) < top_p), jnp.where(wanted, 31, 0))
    # `high` is the smallest bit pattern whose strictly larger entries hold less than top_p: tokens above it are in, and of those equal to it the
    # first few ids. Their last one is found by bisection too, since a cumulative sum costs as much as all of these passes.
    tied, place = bits == high, jnp.arange(probs.shape[-1])
    above, each = ahead(high), jax.lax.bitcast_convert_type(high, jnp.float32)

    def inside(at: jax.Array) -> jax.Array:  # would a tied token at this place be in?
        return above + jnp.sum(tied & (place < at), axis=-1, keepdims=True) * each < top_p

    several = tied.sum(axis=-1, keepdims=True) > 1
    number = jnp.full((rows, 1), probs.shape[-1], jnp.int32)
    passes = jnp.where(several.any() & wanted, probs.shape[-1].bit_length(), 0)
    last, _ = _bisect(jnp.where(several, 0, number), number, inside, passes)
    return (bits > high) | (tied & (place <= last))


def mark(ids: jax.Array, vocab: int) -> jax.Array:
    """ids [N,K] -> bool [N,V]."""
    rows = jnp.arange(ids.shape[0])[:, None]
    return jnp.zeros((ids.shape[0], vocab), bool).at[rows, ids].set(True)


def _per_row(value: float | jax.Array, rows: int) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (rows,))[:, None]


def _keys(key: jax.Array, rows: int) -> jax.Array:
    """Keys [N] from one key, typed or in the old uint32 form, or from keys [N] themselves."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    return key if key.ndim else jax.random.split(key, rows)


def is_argmax(logits: jax.Array, token: int) -> jax.Array:
    """jnp.argmax(logits, -1) == token, bool [N], without an argmax: XLA does not vectorise that on CPU. False for a token outside the vocabulary."""
    if not 0 <= token < logits.shape[-1]:
        return jnp.zeros(logits.shape[0], bool)
    own = logits[:, token]
    earlier, later = (jnp.max(part, axis=-1, initial=-jnp.inf) for part in (logits[:, :token], logits[:, token + 1 :]))
    return (own > earlier) & (own >= later)


@dataclasses.dataclass(frozen=True)
class _Noisy:
    """What distinguishes one noisy choice from another; arrays are [N, 1]."""

    k: int
    top_p: jax.Array
    nucleus: bool  # False: top_p is 1 and the support is the whole vocabulary
    scale: jax.Array
    one_sided: bool
    clamp: tuple[float, float] | None
    delta: float
    only_top_k: bool

    @property
    def plain(self) -> bool:
        """Whether nothing but unclamped noise on the whole vocabulary decides, so that it can be drawn top-down."""
        return self.clamp is None and not self.one_sided and not self.nucleus and not self.only_top_k

    def shape(self, raw: jax.Array) -> jax.Array:
        return shape_noise(raw, clamp=self.clamp, one_sided=self.one_sided, delta=self.delta, scale=self.scale)


def _choose_full(logps: jax.Array, raw: jax.Array, law: _Noisy) -> tuple[jax.Array, jax.Array]:
    """Noise on the whole vocabulary, then the K best of the support: the definition. logps, raw [N,V] -> scores, ids [N,K]."""
    perturbed = logps + law.shape(raw)
    plain_ids = top_k(logps, law.k)[1]
    if law.only_top_k:
        perturbed = jnp.where(mark(plain_ids, logps.shape[-1]), perturbed, _NEVER)
    elif law.nucleus:
        perturbed = jnp.where(nucleus(jnp.exp(logps), law.top_p[:, 0]) | mark(plain_ids, logps.shape[-1]), perturbed, _NEVER)
    return top_k(perturbed, law.k)


def _choose_candidates(logits: jax.Array, lse: jax.Array, keys: jax.Array, law: _Noisy, count: int) -> tuple[jax.Array, ...]:
    """Noise on the about `count` most likely tokens only. Returns scores, ids [N,K], certified bool [N], and the candidates' ids and noise [N,C].

    A row is certified when its whole support lies among the candidates, or when the K-th best score is beyond what clamped noise can give to any
    other token. Then noise on the rest, whatever it were, would change nothing, and the choice is exactly that of _choose_full. Under clamped noise
    one token in twenty sits at the upper clamp, so this holds for flat distributions too.
    """
    values, ids, rest = leading(logits, count)
    # Without barriers what is read from the vocabulary, and the noise, are made again for each of their uses.
    values, raw = jax.lax.optimization_barrier((values - lse, gumbel(keys, values.shape[-1])))
    there = values > _NEVER
    enough = there.sum(-1) >= law.k
    best, best_at = top_k(values, law.k)
    # For one result of top_k alone, or a slice of it, XLA sorts.
    likeliest = mark(jnp.where(best > _NEVER, best_at, values.shape[-1]), values.shape[-1])
    if law.only_top_k:
        support, covered = likeliest, enough
    elif law.nucleus:
        probs = jnp.exp(values)
        covered = enough & (probs.sum(-1) >= law.top_p[:, 0])
        inside = nucleus(probs, law.top_p[:, 0], wanted=covered.any())
        # Candidates that do not reach the mass of the nucleus all belong to it: whatever is ahead of one of them is a candidate too.
        support = jnp.where(covered[:, None], inside | likeliest, True)
    else:
        support, covered = there, jnp.zeros(values.shape[0], bool)
    scores, at = top_k(jax.lax.optimization_barrier(jnp.where(support & there, values + law.shape(raw), _NEVER)), law.k)
    scores = jax.lax.optimization_barrier(scores)
    if law.clamp is not None:
        highest = law.shape(jnp.full((values.shape[0], 1), law.clamp[1]))
        covered |= scores[:, -1] > (rest - lse + highest)[:, 0]
    return scores, jnp.take_along_axis(ids, at, axis=-1), covered, ids, raw


def _choose_top_down(logits: jax.Array, keys: jax.Array, law: _Noisy) -> tuple[jax.Array, jax.Array, jax.Array, Masses]:
    """Scores, ids [N,K], the logsumexp [N,1] of the logits, which at noise scale 1 comes with the draw, and their masses at that scale."""
    safe = jnp.where(law.scale > 0, law.scale, 1.0)
    masses = block_masses(logits, safe)
    scores, ids = gumbel_top_k(logits, keys, law.k, masses, safe)
    lse = jax.lax.cond(
        (safe == 1.0).all(),
        lambda: masses.highest + jax.nn.logsumexp(masses.logs, axis=-1, keepdims=True),
        lambda: jax.nn.logsumexp(logits, axis=-1, keepdims=True),
    )
    return scores * safe - lse, ids, lse, masses


def _choose_noisy(logits: jax.Array, keys: jax.Array, law: _Noisy) -> tuple[jax.Array, jax.Array, jax.Array, Masses | None]:
    """The cheapest way to the law of _choose_full, row by row; rows that it does not cover get full noise. -> scores, ids [N,K],
    logsumexp of the logits [N,1], and their masses at the noise scale where they were needed.

    Which way a row takes depends on that row alone, so a sample is the same in any batch.
    """
    rows, vocab = logits.shape
    count = max(_CANDIDATES, 64 * law.k)
    if law.plain:
        return _choose_top_down(logits, keys, law)
    lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    if vocab <= 4 * count:
        return *_choose_full(logits - lse, gumbel(keys, vocab), law), lse, None
    scores, ids, sure, candidates, drawn = _choose_candidates(logits, lse, keys, law, count)

    def with_full_noise() -> tuple[jax.Array, jax.Array]:
        raw = gumbel(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), vocab)
        # The rows got here because of the noise they drew: drawing it again would bias them.
        raw = raw.at[jnp.arange(rows)[:, None], candidates].set(drawn, mode="drop")
        full_scores, full_ids = _choose_full(logits - lse, raw, law)
        return jnp.where(sure[:, None], scores, full_scores), jnp.where(sure[:, None], ids, full_ids)

    return *jax.lax.cond(sure.all(), lambda: (scores, ids), with_full_noise), lse, None


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
    noise_scale 0 is noise-free. raw_noise [N, V] replaces the standard Gumbel draw. Returns LatentChoice, with masses (at the noise scale, 1 where
    that is 0) for unclamped two-sided noise on the whole vocabulary.
    Errors: ValueError when k does not lie in 1..V. Source: paper section on one-sided noise; tests/golden/sampler.npz.
    """
    rows, vocab = logits.shape
    if not 1 <= k <= vocab:
        raise ValueError(f"k={k} does not lie in 1..{vocab}, the size of the vocabulary")
    logits = logits.astype(jnp.float32)
    scale = _per_row(noise_scale, rows)
    whole = isinstance(top_p, float | int) and top_p >= 1.0
    law = _Noisy(k, _per_row(top_p, rows), not whole, scale, one_sided, clamp, delta, order == "topk_then_perturb")
    if raw_noise is None:
        scores, ids, lse, masses = _choose_noisy(logits, _keys(key, rows), law)
    else:
        masses = None
        lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        scores, ids = _choose_full(logits - lse, raw_noise, law)
    weights = jax.nn.softmax(scores / _per_row(tau, rows), axis=-1)
    noisy = scale[:, 0] > 0
    if end_rule == "argmax":
        noisy &= ~is_argmax(logits, think_end_id)

    def noiseless() -> tuple[jax.Array, jax.Array, jax.Array]:
        plain_logits, plain_ids = top_k(logits, k)
        pick = noisy[:, None]
        plain_weights = jax.nn.softmax(plain_logits, axis=-1)
        return jnp.where(pick, ids, plain_ids), jnp.where(pick, scores, plain_logits - lse), jnp.where(pick, weights, plain_weights)

    ids, scores, weights = jax.lax.cond(noisy.all(), lambda: (ids, scores, weights), noiseless)
    return LatentChoice(ids=ids.astype(jnp.int32), scores=scores, weights=weights, noisy=noisy, masses=masses)


def mix_rows(table: jax.Array, ids: Array, weights: Array) -> jax.Array:
    """sum_k weights_k table[ids_k]. table [V,D], ids and weights [*b,K] -> float32 [*b,D].

    One component at a time, so that the [*b, K, D] tensor never exists.
    """
    weights = jnp.asarray(weights, jnp.float32)
    total = jnp.zeros((*ids.shape[:-1], table.shape[-1]), jnp.float32)
    for component in range(ids.shape[-1]):
        total = total + weights[..., component, None] * table[ids[..., component]].astype(jnp.float32)
    return total


def embed_mixture(table: jax.Array, ids: Array, weights: Array) -> jax.Array:
    """mix_rows in the table's type: the input that follows a step."""
    return mix_rows(table, ids, weights).astype(table.dtype)
