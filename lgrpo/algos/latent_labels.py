"""Latent-SFT stage 1 as data: where compress tokens and latents stand, who sees whom, and the projection of a hidden state onto the vocabulary.

The encoder reads `prompt <think> chunk_1 # chunk_2 # ... chunk_M # </think>`: a compress position (#) after every c chain tokens and one for
the remainder. The decoder reads `prompt <think> z_1 chunk_2 z_2 ... chunk_M z_M </think> answer`: the latent z_i made at the i-th compress
position must tell the chunk that follows it, the last one the end and the answer; the first chunk is left out. Source: arXiv 2510.15522;
numbers of the official functions: tests/golden/sft.npz (seq_*, se_*).

All sequences are packed to the left (padding last) and have static widths, so the functions run inside jit. Letters as in lgrpo.types, and C chain
length, c compression, M = ceil(C / c) latents, E tokens of the end of thinking, A answer length; S is the sequence at hand.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from lgrpo.types import Array

_PROMPT, _LATENT, _CHUNK, _TAIL = range(4)
_FLOOR = 1e-12


@struct.dataclass
class EncoderSequence:
    """What the encoder reads. Padding: token 0, position 0, sees nothing."""

    tokens: Array  # int32 [N,S]; 0 at compress positions, which have a vector of their own
    is_compress: Array  # bool [N,S]
    mask: Array  # bool [N,S]; real positions
    positions: Array  # int32 [N,S]
    attend: Array  # bool [N,S,S] (query, key): the induction mask
    where: Array  # int32 [N,M]; sequence index of each compress position, 0 where there is none
    latents: Array  # bool [N,M]; the compress positions that exist


@struct.dataclass
class DecoderSequence:
    """What the decoder reads. Padding as in EncoderSequence."""

    tokens: Array  # int32 [N,S]; 0 at latent slots
    is_latent: Array  # bool [N,S]
    slot: Array  # int32 [N,S]; number of the latent that stands here or that the chunk belongs to, else 0
    mask: Array  # bool [N,S]
    positions: Array  # int32 [N,S]; the two tracks: latents count on from the prompt, each chunk from its own latent
    attend: Array  # bool [N,S,S] (query, key): the supervision mask
    labelled: Array  # bool [N,S]; tokens that the loss asks for: chunks, end of thinking, answer. Not shifted


def _pack(real: Array, *fields: Array) -> tuple[jax.Array, ...]:
    """Moves what is real to the left, in order; padding becomes 0. real bool [N,S], fields [N,S] -> real, then the fields."""
    order = jnp.argsort(~real, axis=1, stable=True)
    packed = jnp.take_along_axis(real, order, axis=1)
    return packed, *(jnp.where(packed, jnp.take_along_axis(f, order, axis=1), jnp.zeros((), f.dtype)) for f in fields)


def _chunks(chain: Array, mask: Array, compression: int) -> tuple[jax.Array, jax.Array]:
    """chain and mask [N,C] -> tokens and mask [N,M,c]."""
    rows, length = chain.shape
    count = -(-length // compression)
    pad = ((0, 0), (0, count * compression - length))
    shape = (rows, count, compression)
    return jnp.pad(chain, pad).reshape(shape), jnp.pad(mask, pad).reshape(shape)


def _causal(mask: Array) -> jax.Array:
    """bool [N,S] -> bool [N,S,S]: real queries see real keys that are not behind them."""
    length = mask.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & mask[:, :, None] & mask[:, None, :]


def induction_mask(mask: Array, is_compress: Array) -> jax.Array:
    """Causal, but a compress position is seen by itself alone: no latent can lean on another. [N,S] twice -> bool [N,S,S] (query, key)."""
    own = jnp.eye(mask.shape[-1], dtype=bool)
    return _causal(mask) & (~is_compress[:, None, :] | own)


def encoder_sequence(
    prompt: Array, prompt_mask: Array, chain: Array, chain_mask: Array, end: Array, *, compression: int
) -> EncoderSequence:
    """Question and chain with a compress position after every c chain tokens. S = P + C' + M + E with C' = M c.

    prompt int [N,P] with its mask (padded on any side), chain int [N,C] with its mask (padded right), end int [E] closes the sequence.
    """
    rows = chain.shape[0]
    tokens, real = _chunks(chain, chain_mask, compression)
    latents = real.any(-1)
    # A column of its own after each chunk holds the compress position.
    body = jnp.pad(tokens, ((0, 0), (0, 0), (0, 1))).reshape(rows, -1)
    body_real = jnp.concatenate([real, latents[..., None]], axis=-1).reshape(rows, -1)
    compress = jnp.zeros((*real.shape[:2], compression + 1), bool).at[..., -1].set(latents).reshape(rows, -1)
    tail = jnp.broadcast_to(jnp.asarray(end, jnp.int32), (rows, len(end)))
    sequence = jnp.concatenate([prompt, body, tail], axis=1).astype(jnp.int32)
    keep = jnp.concatenate([prompt_mask, body_real, jnp.ones(tail.shape, bool)], axis=1)
    flags = jnp.concatenate([jnp.zeros(prompt.shape, bool), compress, jnp.zeros(tail.shape, bool)], axis=1)
    mask, packed, is_compress = _pack(keep, sequence, flags)
    count = latents.shape[1]
    # The n-th compress position: the index at which the running count of compress positions reaches n + 1.
    running = jnp.cumsum(is_compress, axis=1)
    where = jnp.argmax(running[:, None, :] > jnp.arange(count)[:, None], axis=-1)
    return EncoderSequence(
        tokens=packed,
        is_compress=is_compress,
        mask=mask,
        positions=jnp.where(mask, jnp.cumsum(mask, axis=1) - 1, 0).astype(jnp.int32),
        attend=induction_mask(mask, is_compress),
        where=jnp.where(latents, where, 0).astype(jnp.int32),
        latents=latents,
    )


def supervision_mask(mask: Array, kind: Array, slot: Array) -> jax.Array:
    """Who sees whom in the decoder, bool [N,S,S] (query, key). mask bool, kind and slot int [N,S].

    Prompt: the prompt. Latent: prompt, earlier latents, itself, no text. Chunk: its own latent and itself. End and answer: prompt, all latents,
    themselves, no chunk. All of it causal.
    """
    q, k = kind[:, :, None], kind[:, None, :]
    to_thought = (k == _PROMPT) | (k == _LATENT)
    same_slot = slot[:, :, None] == slot[:, None, :]
    chunk = ((k == _LATENT) | (k == _CHUNK)) & same_slot
    seen = jnp.where(q == _CHUNK, chunk, to_thought | ((q == _TAIL) & (k == _TAIL)))
    return _causal(mask) & seen


def decoder_sequence(
    prompt: Array, prompt_mask: Array, chain: Array, chain_mask: Array, end: Array, answer: Array, answer_mask: Array, *, compression: int
) -> DecoderSequence:
    """Latents with the chunks they must tell between them, then the end of thinking and the answer. S = P + M c + E + A.

    Arguments as in encoder_sequence; answer int [N,A] with its mask (padded right), end of sequence included.
    """
    rows = chain.shape[0]
    tokens, real = _chunks(chain, chain_mask, compression)
    latents = real.any(-1)
    slots, width = latents.shape[1], compression + 1
    # Slot i holds latent i and chunk i + 1; the last slot has no chunk.
    following = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1), (0, 0)))
    following_real = jnp.pad(real[:, 1:], ((0, 0), (0, 1), (0, 0)))

    def body(first: Array, rest: Array) -> jax.Array:
        flat = jnp.concatenate([first[..., None], rest], axis=-1).reshape(rows, -1)
        return flat[:, : slots * width - compression]

    number = jnp.broadcast_to(jnp.arange(slots)[:, None], (rows, slots, width))
    offset = jnp.broadcast_to(jnp.arange(width), (rows, slots, width))
    p_len = prompt_mask.sum(-1, dtype=jnp.int32)[:, None]
    tail = jnp.concatenate([jnp.broadcast_to(jnp.asarray(end, jnp.int32), (rows, len(end))), answer], axis=1)
    tail_real = jnp.concatenate([jnp.ones((rows, len(end)), bool), answer_mask], axis=1)
    inside = body(latents, following_real)
    shape = {"prompt": prompt.shape, "body": inside.shape, "tail": tail.shape}

    def whole(prompt_part: Array | int, body_part: Array, tail_part: Array | int) -> jax.Array:
        parts = zip((prompt_part, body_part, tail_part), shape.values(), strict=True)
        return jnp.concatenate([jnp.broadcast_to(jnp.asarray(x, jnp.int32), s) for x, s in parts], axis=1)

    kinds = body(jnp.full((rows, slots), _LATENT), jnp.full((rows, slots, compression), _CHUNK))
    numbers = body(number[..., 0], number[..., 1:])
    track = p_len + numbers + body(offset[..., 0], offset[..., 1:])
    after = p_len + latents.sum(-1, dtype=jnp.int32)[:, None] + jnp.arange(tail.shape[1])
    mask, ids, kind, slot, positions = _pack(
        jnp.concatenate([prompt_mask, inside, tail_real], axis=1),
        whole(prompt, body(jnp.zeros((rows, slots), jnp.int32), following), tail),
        whole(_PROMPT, kinds, _TAIL),
        whole(0, numbers, 0),
        whole(jnp.cumsum(prompt_mask, axis=1) - 1, track, after),
    )
    return DecoderSequence(
        tokens=ids,
        is_latent=mask & (kind == _LATENT),
        slot=slot,
        mask=mask,
        positions=positions,
        attend=supervision_mask(mask, kind, slot),
        labelled=mask & ((kind == _CHUNK) | (kind == _TAIL)),
    )


def project(
    hidden: Array,
    table: Array,
    *,
    k: int,
    temperature: float = 1.0,
    kind: Literal["dot", "cosine"] = "dot",
    banned_id: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Vocabulary projection: softmax over the K best scores of hidden states against the (constant) embedding table.

    hidden [*b,D], table [V,D] -> ids int32 [*b,K] best first, probs float32 [*b,K]. cosine: both normalised before the product. banned_id never
    enters a mixture: a latent with the end of thinking on top would end it. Source: tests/golden/sft.npz (se_*).
    """
    hidden, table = jnp.asarray(hidden, jnp.float32), jax.lax.stop_gradient(jnp.asarray(table, jnp.float32))
    if kind == "cosine":
        hidden, table = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _FLOOR) for x in (hidden, table))
    scores = hidden @ table.T
    if banned_id is not None:
        scores = scores.at[..., banned_id].set(-jnp.inf)
    best, ids = jax.lax.top_k(scores, k)
    return ids.astype(jnp.int32), jax.nn.softmax(best / temperature, axis=-1)
