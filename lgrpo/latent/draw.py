"""Selection and sampling over a large vocabulary without sorting it: block top-k, two-level inverse CDF, draws without replacement.

The vocabulary is cut into blocks of about sqrt(V) entries. One pass over V makes a sum or a maximum per block; everything after that touches a few
blocks per row. On CPU this is what separates a sampling step from the matrix product beside it; see docs/performance.md.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_TINY_MASS = 1e-25  # below this share of the largest probability, float32 masses have lost the tail


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
    """(highest logit [..., 1], sums of exp(logit - highest) per block [..., V / b]) of logits [..., V]: two passes that write nothing of size V."""
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return highest, jnp.exp(to_blocks(logits) - highest[..., None]).sum(-1)


def rest_mass(logits: jax.Array, highest: jax.Array, sums: jax.Array, ids: jax.Array) -> jax.Array:
    """Mass [...] of all tokens but `ids` [..., K], in the units of `sums`: added up without them, since a difference would cancel."""
    blocks = to_blocks(logits)
    size = blocks.shape[-1]
    block = ids // size
    inside = jnp.exp(jnp.take_along_axis(blocks, block[..., None], axis=-2) - highest[..., None])
    entries = block[..., None] * size + jnp.arange(size)
    chosen = (entries[..., None] == ids[..., None, None, :]).any(-1)
    left = jnp.where(chosen, 0.0, inside).sum(-1)
    first = ~(jnp.tril(block[..., None] == block[..., None, :], -1).any(-1))  # a block that holds several ids counts once
    touched = (jnp.arange(sums.shape[-1])[:, None] == block[..., None, :]).any(-1)
    return jnp.where(touched, 0.0, sums).sum(-1) + jnp.where(first, left, 0.0).sum(-1)


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


def _pick(
    blocks: jax.Array, highest: jax.Array, sums: jax.Array, uniform: jax.Array, taken: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One draw per row in proportion to exp(logit). blocks [N,nb,b] of logits, highest and sums of block_masses, uniform [N] in [0,1);
    taken int [N,K]: ids that were drawn before and have no mass, -1 for none.

    Returns ids [N], the block of each [N], and that block's mass without the drawn entry [N].
    """
    size = blocks.shape[-1]
    target = uniform * sums.sum(-1)
    block = _locate(sums, target)
    before = jnp.where(jnp.arange(sums.shape[-1]) < block[:, None], sums, 0.0).sum(-1)
    inside = jnp.exp(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0] - highest)
    ids = block[:, None] * size + jnp.arange(size)
    inside = jnp.where((ids[..., None] == taken[:, None]).any(-1), 0.0, inside)
    at = _locate(inside, target - before)
    left = jnp.where(jnp.arange(size) == at[:, None], 0.0, inside).sum(-1)
    return jnp.take_along_axis(ids, at[:, None], axis=-1)[:, 0], block, left


def _uniforms(keys: jax.Array, count: int) -> jax.Array:
    """float32 [N, count] in [0, 1), row n from keys[n]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,), jnp.float32))(keys)


def categorical(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """One id per row from softmax(logits), by one uniform number a row instead of V. logits float32 [N,V] (-inf: impossible), keys [N] -> int32 [N]."""
    highest, sums = block_masses(logits)
    nothing = jnp.full((logits.shape[0], 1), -1, jnp.int32)
    return _pick(to_blocks(logits), highest, sums, _uniforms(keys, 1)[:, 0], nothing)[0].astype(jnp.int32)


def gumbel_top_k(
    logits: jax.Array, keys: jax.Array, k: int, masses: tuple[jax.Array, jax.Array] | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k largest of logits + standard Gumbel noise, in law, from 2k random numbers a row instead of V.

    Top-down sampling: the largest scores are k draws without replacement from exp(logits) with a Poisson clock. With Z_j the mass that remains after
    j draws and E_j ~ Exp(1), t_1 = E_1 / Z_0, t_(j+1) = t_j + E_(j+1) / Z_j, and the scores are -log t_j.
    logits float32 [N,V], keys [N], masses: block_masses(logits) where it is at hand -> (scores float32 [N,k], best first; ids int32 [N,k];
    reliable bool [N]). Not reliable are rows whose remaining mass left the range of float32, as when k tokens carry all of it: draw those with full
    noise.
    """
    rows = logits.shape[0]
    blocks = to_blocks(logits)
    highest, masses = block_masses(logits) if masses is None else masses
    random = _uniforms(keys, 2 * k)
    waits = -jnp.log1p(-random[:, k:])
    at_row = jnp.arange(rows)

    def draw(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        sums, ids, times, clock, reliable = carry
        remaining = sums.sum(-1)
        clock = clock + waits[:, j] / jnp.maximum(remaining, _TINY_MASS)
        drawn, block, left = _pick(blocks, highest, sums, random[:, j], ids)
        sums = sums.at[at_row, block].set(left)
        return sums, ids.at[:, j].set(drawn), times.at[:, j].set(clock), clock, reliable & (remaining > _TINY_MASS)

    nothing = jnp.full((rows, k), -1, jnp.int32)
    start = (masses, nothing, jnp.zeros((rows, k), jnp.float32), jnp.zeros((rows,), jnp.float32), jnp.ones((rows,), bool))
    _, ids, times, _, reliable = jax.lax.fori_loop(0, k, draw, start)
    # An exponential of exactly 0 (once in 2^24 draws) would give an infinite score.
    scores = -jnp.log(jnp.maximum(times, jnp.finfo(jnp.float32).tiny)) + highest
    return scores, ids, reliable
