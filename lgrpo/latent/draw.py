"""Selection and sampling over a large vocabulary without sorting it: block top-k, two-level inverse CDF, draws without replacement.

The vocabulary is cut into blocks of about sqrt(V) entries. One pass over V makes a sum or a maximum per block; everything after that touches a few
blocks per row. On CPU this is what separates a sampling step from the matrix product beside it; see docs/performance.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

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


def block_masses(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(highest logit h [..., 1], log of the mass of each block, relative to exp(h) [..., V / b]) of logits [..., V].

    Each block is summed in its own maximum, so that no block underflows beside another. Two passes that write nothing of size V.
    """
    blocks = to_blocks(logits)
    tops = jax.lax.stop_gradient(blocks.max(-1))
    highest = tops.max(-1, keepdims=True)
    tops = jnp.maximum(tops, jnp.finfo(logits.dtype).min)  # -inf - -inf is NaN
    sums = jnp.exp(blocks - tops[..., None]).sum(-1)
    some = sums > 0  # none where every token of the block is forbidden
    return highest, jnp.where(some, (tops - highest) + jnp.log(jnp.where(some, sums, 1.0)), -jnp.inf)


def rest_mass(logits: jax.Array, highest: jax.Array, masses: jax.Array, ids: jax.Array) -> jax.Array:
    """Log of the mass [...] of all tokens but `ids` [..., K], in the units of block_masses (its results: highest, masses).

    Added up without them, since a difference would cancel, and in its own maximum, since it may be far below the smallest float. Never below
    the lowest finite number, which says that nothing is left.
    """
    blocks = to_blocks(logits)
    size = blocks.shape[-1]
    block = ids // size
    inside = jnp.take_along_axis(blocks, block[..., None], axis=-2) - highest[..., None]
    entries = block[..., None] * size + jnp.arange(size)
    chosen = (entries[..., None] == ids[..., None, None, :]).any(-1)
    again = jnp.tril(block[..., None] == block[..., None, :], -1).any(-1)  # a block that holds several ids counts once
    left = jnp.where(chosen | again[..., None], -jnp.inf, inside)
    touched = (jnp.arange(masses.shape[-1])[:, None] == block[..., None, :]).any(-1)
    nothing = jnp.full(highest.shape, jnp.finfo(logits.dtype).min)
    parts = [jnp.where(touched, -jnp.inf, masses), left.reshape(*left.shape[:-2], -1), nothing]
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


def _locate(mass: jax.Array, target: jax.Array) -> jax.Array:
    """Inverse CDF: the first index whose cumulated mass exceeds target; never one without mass. mass [N,M], target [N] -> int [N]."""
    # A parallel cumsum wobbles by an ulp and a target may lie an ulp below 0, so what has no mass could have a step of its own: only the rest counts.
    possible = mass > 0
    reached = possible & (jnp.cumsum(mass, axis=-1) > target[:, None])
    last = mass.shape[-1] - 1 - jnp.argmax(possible[:, ::-1], axis=-1)  # where rounding pushed the target past the end
    return jnp.where(reached.any(axis=-1), jnp.argmax(reached, axis=-1), last)


class _Drawn(NamedTuple):
    """One draw per row."""

    ids: jax.Array  # int [N]
    block: jax.Array  # int [N]; that of the drawn entry
    left: jax.Array  # float32 [N]; log of that block's mass without it
    total: jax.Array  # float32 [N]; log of the mass that was drawn from


def _pick(blocks: jax.Array, highest: jax.Array, masses: jax.Array, uniform: jax.Array, taken: jax.Array) -> _Drawn:
    """One draw per row in proportion to exp(logit). blocks [N,nb,b] of logits, highest and masses as of block_masses, uniform [N] in [0,1);
    taken int [N,K]: ids that were drawn before and have no mass, -1 for none.

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
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0] - highest
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
    logits: jax.Array, keys: jax.Array, k: int, masses: tuple[jax.Array, jax.Array] | None = None
) -> tuple[jax.Array, jax.Array]:
    """The k largest of logits + standard Gumbel noise, in law, from 2k random numbers a row instead of V.

    Top-down sampling: the largest scores are k draws without replacement from exp(logits) with a Poisson clock. With Z_j the mass that remains after
    j draws and E_j ~ Exp(1), t_1 = E_1 / Z_0, t_(j+1) = t_j + E_(j+1) / Z_j, and the scores are -log t_j. Masses and times are kept as logarithms,
    so this holds for any logits, also where k - 1 tokens carry all but 1e-40 of the mass.
    logits float32 [N,V], keys [N], masses: block_masses(logits) where it is at hand -> (scores float32 [N,k], best first; ids int32 [N,k]).
    """
    rows = logits.shape[0]
    blocks = to_blocks(logits)
    highest, masses = block_masses(logits) if masses is None else masses
    random = _uniforms(keys, 2 * k)
    waits = jnp.log(jnp.maximum(-jnp.log1p(-random[:, k:]), _LEAST_WAIT))
    at_row = jnp.arange(rows)

    def draw(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        masses, ids, times, clock = carry
        drawn = _pick(blocks, highest, masses, random[:, j], ids)
        clock = jnp.logaddexp(clock, waits[:, j] - drawn.total)
        return masses.at[at_row, drawn.block].set(drawn.left), ids.at[:, j].set(drawn.ids), times.at[:, j].set(clock), clock

    start = (masses, jnp.full((rows, k), -1, jnp.int32), jnp.zeros((rows, k), jnp.float32), jnp.full((rows,), -jnp.inf, jnp.float32))
    _, ids, times, _ = jax.lax.fori_loop(0, k, draw, start)
    return highest - times, ids
