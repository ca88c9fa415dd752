"""Selection and sampling over a large vocabulary without sorting it: block top-k, two-level inverse CDF, draws without replacement.

The vocabulary is cut into blocks of about sqrt(V) entries. One pass over V makes a sum or a maximum per block; everything after that touches a few
blocks per row. On CPU this is what separates a sampling step from the matrix product beside it; see docs/performance.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_STRIDED = 8  # entries of a block of `leading`
_LEAST_WAIT = 2.0**-24  # half of the spacing of float32 uniforms: what an exponential of "0" stands for


def block_size(vocab: int, wanted: int = 1) -> int:
    """A power of two near sqrt(V / wanted), which balances the number of blocks against what `wanted` of them hold. One that divides V where there is
    one close by, since padding copies the whole array."""
    ideal = max(1, round((vocab / wanted) ** 0.5)).bit_length()
    near = [1 << e for e in (ideal, ideal - 1, ideal + 1, ideal - 2) if e >= 0]
    return next((b for b in near if vocab % b == 0), near[0])


def to_blocks(x: jax.Array, wanted: int = 1) -> jax.Array:
    """[..., V] -> [..., V / b, b] with b = block_size(V, wanted), padded with -inf."""
    size = block_size(x.shape[-1], wanted)
    short = -x.shape[-1] % size
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)], constant_values=-jnp.inf) if short else x
    return x.reshape(*x.shape[:-1], -1, size)


class Masses(NamedTuple):
    """The normalisation of a row, by blocks."""

    highest: jax.Array  # float32 [..., 1]; the largest logit
    logs: jax.Array  # float32 [..., V / b]; log of the mass of each block, relative to exp(highest)


def block_masses(logits: jax.Array, temperature: jax.Array | float = 1.0) -> Masses:
    """Masses of logits [..., V] divided by temperature [..., 1].

    Each block is summed in its own maximum, so that no block underflows beside another. Two passes that write nothing of size V: the quotients are
    not kept, and the largest of them is that of the largest logit.
    """
    blocks = to_blocks(logits)
    tops = jax.lax.stop_gradient(blocks.max(-1)) / temperature
    highest = tops.max(-1, keepdims=True)
    tops = jnp.maximum(tops, jnp.finfo(logits.dtype).min)  # -inf - -inf is NaN
    sums = jnp.exp(blocks / jnp.expand_dims(temperature, -1) - tops[..., None]).sum(-1)
    some = sums > 0  # none where every token of the block is forbidden
    return Masses(highest, jnp.where(some, (tops - highest) + jnp.log(jnp.where(some, sums, 1.0)), -jnp.inf))


def rest_mass(logits: jax.Array, masses: Masses, ids: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
    """Log of the mass [...] of all tokens but `ids` [..., K], in the units of masses = block_masses(logits, temperature).

    Added up without them, since a difference would cancel, and in its own maximum, since it may be far below the smallest float. Never below
    the lowest finite number, which says that nothing is left.
    """
    blocks = to_blocks(logits)
    size = blocks.shape[-1]
    block = ids // size
    inside = jnp.take_along_axis(blocks, block[..., None], axis=-2) / jnp.expand_dims(temperature, -1) - masses.highest[..., None]
    entries = block[..., None] * size + jnp.arange(size)
    chosen = (entries[..., None] == ids[..., None, None, :]).any(-1)
    again = jnp.tril(block[..., None] == block[..., None, :], -1).any(-1)  # a block that holds several ids counts once
    left = jnp.where(chosen | again[..., None], -jnp.inf, inside)
    touched = (jnp.arange(masses.logs.shape[-1])[:, None] == block[..., None, :]).any(-1)
    nothing = jnp.full(masses.highest.shape, jnp.finfo(logits.dtype).min)
    parts = [jnp.where(touched, -jnp.inf, masses.logs), left.reshape(*left.shape[:-2], -1), nothing]
    return jax.nn.logsumexp(jnp.concatenate(parts, axis=-1), axis=-1)


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """lax.top_k along the last axis of [N, V], the same values and ids (ties: lower ids first), from the k blocks with the largest maxima."""
    vocab = x.shape[-1]
    size = block_size(vocab, k)
    if k * size * 2 > vocab:
        return jax.lax.top_k(x, k)
    blocks = to_blocks(x, k)
    best = jax.lax.top_k(blocks.max(-1), k)[1]
    best = jnp.sort(best, axis=-1)  # in the order of ids, so that ties between blocks are resolved as lax.top_k does
    inside = jnp.take_along_axis(blocks, best[..., None], axis=1)
    values, at = jax.lax.top_k(inside.reshape(x.shape[0], -1), k)
    ids = jnp.take_along_axis(best, at // size, axis=-1) * size + at % size
    return values, jnp.minimum(ids, vocab - 1)  # rows of -inf only: padding may tie with real entries


def _places(chosen: jax.Array, count: int) -> jax.Array:
    """The places of the first `count` true entries of each row, ascending; M where there are fewer. bool [N, M] -> int32 [N, count].

    Entries become bits of words, so that only one number in 32 is summed up and searched; the bit within its word is found by halving it.
    """
    rows, number = chosen.shape
    bits = jnp.pad(chosen, ((0, 0), (0, -number % 32))).reshape(rows, -1, 32).astype(jnp.uint32)
    words = (bits << jnp.arange(32, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)
    sums = jax.lax.population_count(words).astype(jnp.int32)
    ends, wanted = jnp.cumsum(sums, axis=-1), jnp.arange(count)
    at = jax.vmap(lambda seen: jnp.searchsorted(seen, wanted, side="right"))(ends)
    there, at = at < words.shape[-1], jnp.minimum(at, words.shape[-1] - 1)
    rank = wanted - jnp.take_along_axis(ends - sums, at, axis=-1)
    word, bit = jnp.take_along_axis(words, at, axis=-1), jnp.zeros_like(rank)
    for half in (16, 8, 4, 2, 1):
        lower = jax.lax.population_count(word & jnp.uint32((1 << half) - 1)).astype(jnp.int32)
        upper = rank >= lower
        rank, bit = rank - jnp.where(upper, lower, 0), bit + jnp.where(upper, half, 0)
        word = jnp.where(upper, word >> half, word)
    return jnp.where(there, at * 32 + bit, number)


class Leading(NamedTuple):
    """The largest entries of each row."""

    values: jax.Array  # [N, C]; -inf in places that hold none
    ids: jax.Array  # int32 [N, C], ascending; V in places that hold none
    rest: jax.Array  # [N, 1]; the largest entry that was left out, -inf for none


def leading(x: jax.Array, count: int) -> Leading:
    """Every entry of x [N, V] above the highest bound that at most `count` blocks of 8 reach: about `count` entries, unsorted.

    Sorting the `count` largest is what lax.top_k spends its time on, row by row and on one core. Here a bisection over the bit patterns of the
    distance to the row's maximum, which are ordered like the numbers, finds the bound among the maxima of the blocks. Blocks are strided, so that
    their maxima are a vector operation and reading them one place after the other gives ascending ids.
    """
    rows, vocab = x.shape
    short = -vocab % _STRIDED
    blocks = (jnp.pad(x, ((0, 0), (0, short)), constant_values=-jnp.inf) if short else x).reshape(rows, _STRIDED, -1)
    maxima = blocks.max(1)
    top = maxima.max(-1, keepdims=True)
    number = maxima.shape[-1]

    def depth(values: jax.Array) -> jax.Array:
        below = jnp.where(values == -jnp.inf, jnp.inf, top.reshape(rows, *[1] * (values.ndim - 1)) - values)
        return jax.lax.bitcast_convert_type(below, jnp.int32)

    depths = depth(maxima)
    least = count * 15 // 16 if number > count else number  # near enough: the last few passes would only tell equals apart

    def halve(span: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, high, _ = span  # at most `count` blocks lie above depth `low`, more above `high`
        middle = low + (high - low) // 2
        above = (depths < middle).sum(-1, keepdims=True)
        fits = above <= count
        low, high = jnp.where(fits, middle, low), jnp.where(fits, high, middle)
        found = fits & (above >= least) | (high - low <= 1)
        return low, jnp.where(found, low, high), found

    ends = jnp.zeros((rows, 1), jnp.int32), jnp.full((rows, 1), 0x7F800002, jnp.int32)  # beyond the pattern of inf
    bound = jax.lax.while_loop(lambda span: ~span[2].all(), halve, (*ends, jnp.zeros((rows, 1), bool)))[0]
    chosen = depths < bound
    at = _places(chosen, count)
    inside = jnp.take_along_axis(blocks, jnp.minimum(at, number - 1)[:, None, :], axis=2)
    some = (at < number)[:, None, :]
    kept = some & (depth(inside) < bound[..., None]) & (inside > -jnp.inf)
    ids = jnp.arange(_STRIDED)[:, None] * number + at[:, None, :]
    rest = jnp.where(chosen, -jnp.inf, maxima).max(-1), jnp.where(kept | ~some, -jnp.inf, inside).max((1, 2))
    values, ids = jnp.where(kept, inside, -jnp.inf), jnp.where(kept, ids, vocab)
    return Leading(values.reshape(rows, -1), ids.reshape(rows, -1).astype(jnp.int32), jnp.maximum(*rest)[:, None])


def _locate(mass: jax.Array, target: jax.Array) -> jax.Array:
    """Inverse CDF: the first index whose cumulated mass exceeds target; never one without mass. mass [N,M], target [N] -> int [N]."""
    # A parallel cumsum wobbles by an ulp and a target may lie an ulp below 0, so what has no mass could have a step of its own: only the rest counts.
    possible, place = mass > 0, jnp.arange(mass.shape[-1])
    reached = possible & (jnp.cumsum(mass, axis=-1) > target[:, None])
    first = jnp.where(reached, place, mass.shape[-1]).min(axis=-1)
    last = jnp.where(possible, place, 0).max(axis=-1)  # where rounding pushed the target past the end
    return jnp.minimum(first, last)


class _Drawn(NamedTuple):
    """One draw per row."""

    ids: jax.Array  # int [N]
    block: jax.Array  # int [N]; that of the drawn entry
    left: jax.Array  # float32 [N]; log of that block's mass without it
    total: jax.Array  # float32 [N]; log of the mass that was drawn from


def _pick(
    blocks: jax.Array, highest: jax.Array, masses: jax.Array, uniform: jax.Array, taken: jax.Array, temperature: jax.Array | float = 1.0
) -> _Drawn:
    """One draw per row in proportion to exp(logit / temperature). blocks [N,nb,b] of logits, highest and masses as of block_masses, uniform [N] in
    [0,1); taken int [N,K]: ids that were drawn before and have no mass, -1 for none; temperature [N,1].

    Blocks are compared in the largest mass that is left, tokens in that of their block: whatever was drawn before, nothing underflows. Where every
    token that is left is forbidden, the lowest ids follow.
    """
    size = blocks.shape[-1]
    top = masses.max(-1)
    some = top > -jnp.inf
    share = jnp.exp(masses - jnp.where(some, top, 0.0)[:, None])
    target = uniform * share.sum(-1)
    block = _locate(share, target)
    before = jnp.where(jnp.arange(share.shape[-1]) < block[:, None], share, 0.0).sum(-1)
    own = jnp.take_along_axis(masses, block[:, None], axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0] / temperature - highest
    ids = block[:, None] * size + jnp.arange(size)
    inside = jnp.where((ids[..., None] == taken[:, None]).any(-1), -jnp.inf, inside)
    part = jnp.exp(inside - jnp.where(some[:, None], own, 0.0))
    at = _locate(part, (target - before) / jnp.where(some, jnp.exp(own[:, 0] - top), 1.0))
    left = jax.nn.logsumexp(jnp.where(jnp.arange(size) == at[:, None], -jnp.inf, inside), axis=-1)
    lowest = jnp.argmin((jnp.arange(taken.shape[-1] + 1)[:, None] == taken[:, None]).any(-1), axis=-1)
    drawn = jnp.where(some, jnp.take_along_axis(ids, at[:, None], axis=-1)[:, 0], lowest)
    return _Drawn(drawn, block, left, top + jnp.log(jnp.where(some, share.sum(-1), 1.0)))


def _uniforms(keys: jax.Array, count: int) -> jax.Array:
    """float32 [N, count] in [0, 1), row n from keys[n]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,), jnp.float32))(keys)


def categorical(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """One id per row from softmax(logits), by one uniform number a row instead of V. logits float32 [N,V] (-inf: impossible), keys [N] -> int32 [N]."""
    nothing = jnp.full((logits.shape[0], 1), -1, jnp.int32)
    return _pick(to_blocks(logits), *block_masses(logits), _uniforms(keys, 1)[:, 0], nothing).ids.astype(jnp.int32)


def gumbel_top_k(
    logits: jax.Array, keys: jax.Array, k: int, masses: Masses | None = None, temperature: jax.Array | float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """The k largest of logits / temperature + standard Gumbel noise, in law, from 2k random numbers a row instead of V.

    Top-down sampling: the largest scores are k draws without replacement from exp(logits) with a Poisson clock. With Z_j the mass that remains after
    j draws and E_j ~ Exp(1), t_1 = E_1 / Z_0, t_(j+1) = t_j + E_(j+1) / Z_j, and the scores are -log t_j. Masses and times are kept as logarithms,
    so this holds for any logits, also where k - 1 tokens carry all but 1e-40 of the mass.
    logits float32 [N,V], keys [N], temperature [N,1], masses: their block_masses where they are at hand -> (scores float32 [N,k], best first;
    ids int32 [N,k]).
    """
    rows = logits.shape[0]
    blocks = to_blocks(logits)
    highest, masses = block_masses(logits, temperature) if masses is None else masses
    random = _uniforms(keys, 2 * k)
    waits = jnp.log(jnp.maximum(-jnp.log1p(-random[:, k:]), _LEAST_WAIT))

    def draw(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        masses, ids, times, clock = carry
        drawn = _pick(blocks, highest, masses, random[:, j], ids, temperature)
        clock = jnp.logaddexp(clock, waits[:, j] - drawn.total)
        masses = jnp.where(jnp.arange(masses.shape[-1]) == drawn.block[:, None], drawn.left[:, None], masses)
        return masses, ids.at[:, j].set(drawn.ids), times.at[:, j].set(clock), clock

    start = (masses, jnp.full((rows, k), -1, jnp.int32), jnp.zeros((rows, k), jnp.float32), jnp.full((rows,), -jnp.inf, jnp.float32))
    _, ids, times, _ = jax.lax.fori_loop(0, k, draw, start)
    return highest - times, ids
