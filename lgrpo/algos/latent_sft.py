"""Supervised targets: explicit chains, and Latent-SFT stage 2 on latent labels (arXiv 2510.15522; DESIGN section 5)."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from lgrpo.latent.noise import gumbel
from lgrpo.types import Array, Mean, masked_mean

_LOG_FLOOR = 1e-10


@struct.dataclass
class LatentLabels:
    """One mixture per latent step: ids int32 [N,M,K], probs float32 [N,M,K] (sum to 1), mask bool [N,M] of real latents."""

    ids: Array
    probs: Array
    mask: Array


@struct.dataclass
class SftTargets:
    """A completion to be teacher-forced: the inputs, and which steps are latents and which are tokens."""

    ids: Array  # int32 [N,T,K]
    weights: Array  # float32 [N,T,K]; input mixture, and on latent steps the target too
    is_latent: Array  # bool [N,T]
    mask: Array  # bool [N,T]


def superposition_weights(compression: int, kind: Literal["uniform", "binomial", "ramp"]) -> jax.Array:
    """Weights of the tokens of a full chunk, float32 [c], sum 1. binomial for c=3 is (.25,.5,.25); ramp grows towards the end of the chunk."""
    if kind == "binomial":
        raw = [math.comb(compression - 1, j) for j in range(compression)]
    elif kind == "ramp":
        raw = [j + 1 for j in range(compression)]
    else:
        raw = [1] * compression
    return jnp.asarray(raw, jnp.float32) / sum(raw)


def superposition_labels(
    chain: Array, mask: Array, *, k: int, compression: int, kind: Literal["uniform", "binomial", "ramp"]
) -> LatentLabels:
    """Each chunk of c chain tokens becomes one mixture of them; equal tokens add up; a short last chunk is renormalised.

    chain int32 [N,C] and mask bool [N,C], padded on the right -> labels with M = ceil(C / c), best token first, padded with weight 0 to K.
    Errors: ValueError when a chunk cannot fit into K components.
    """
    if compression > k:
        raise ValueError(
            f"compression {compression} puts up to {compression} tokens into a mixture of k={k}; raise k or lower the compression"
        )
    rows, length = chain.shape
    count = -(-length // compression)
    pad = ((0, 0), (0, count * compression - length))
    tokens = jnp.pad(chain, pad).reshape(rows, count, compression)
    real = jnp.pad(mask, pad).reshape(rows, count, compression)
    weights = jnp.where(real, superposition_weights(compression, kind), 0.0)
    same = (tokens[..., :, None] == tokens[..., None, :]) & real[..., :, None] & real[..., None, :]
    merged = jnp.sum(jnp.where(same, weights[..., None, :], 0.0), axis=-1)
    earlier = jnp.tril(jnp.ones((compression, compression), bool), -1)
    weights = jnp.where((same & earlier).any(-1), 0.0, merged)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), _LOG_FLOOR)
    weights, order = jax.lax.top_k(weights, compression)
    ids = jnp.where(weights > 0, jnp.take_along_axis(tokens, order, axis=-1), 0)
    widen = ((0, 0), (0, 0), (0, k - compression))
    return LatentLabels(jnp.pad(ids, widen).astype(jnp.int32), jnp.pad(weights, widen), real.any(-1))


def noisy_labels(
    labels: LatentLabels,
    keys: Array,
    *,
    scale: float,
    clamp: tuple[float, float] | None,
    think_end_id: int,
    tau: float = 1.0,
    redraws: int = 100,
) -> LatentLabels:
    """q' = softmax((log(q + 1e-10) + clip(s * g, clamp)) / tau) over the components, best first. keys [N].

    A latent whose noise puts the end of thinking on top would end the chain: its noise is drawn again, up to `redraws` times, and then the label
    stays clean. Drawing single latents again has the law of drawing whole sequences again (as the official code does), at less cost. A label that
    has the end on top itself is left to the noise.
    """
    rows, count, k = labels.ids.shape
    # Components that are only padding stay at 0, or noise would lift them to a visible share.
    real = (labels.probs > 0) & labels.mask[..., None]
    log_q = jnp.log(labels.probs + _LOG_FLOOR)
    ends_itself = labels.ids[..., 0] == think_end_id

    def draw(keys: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(ids, probs, spoiled) of one attempt."""
        noise = scale * gumbel(keys, count * k).reshape(rows, count, k)
        noise = noise if clamp is None else jnp.clip(noise, *clamp)
        logits = jnp.where(real, (log_q + noise) / tau, jnp.where(labels.mask[..., None], -jnp.inf, 0.0))
        probs, order = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), k)
        ids = jnp.take_along_axis(labels.ids, order, axis=-1)
        return ids, probs, (ids[..., 0] == think_end_id) & ~ends_itself & labels.mask

    def more(carry: tuple[Array, Array, Array, Array]) -> jax.Array:
        attempt, _, _, spoiled = carry
        return (attempt <= redraws) & spoiled.any()

    def step(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        attempt, ids, probs, spoiled = carry
        new_ids, new_probs, still = draw(jax.vmap(lambda key: jax.random.fold_in(key, attempt))(keys))
        pick = spoiled[..., None]
        return attempt + 1, jnp.where(pick, new_ids, ids), jnp.where(pick, new_probs, probs), spoiled & still

    first = (jnp.asarray(1, jnp.int32), *draw(keys))
    _, ids, probs, spoiled = jax.lax.while_loop(more, step, first)
    clean = (spoiled | ~labels.mask)[..., None]
    return labels.replace(ids=jnp.where(clean, labels.ids, ids), probs=jnp.where(clean, labels.probs, probs))


def _join(thoughts: Array, end: Array, answer: Array, lengths: Array) -> jax.Array:
    """[thoughts up to their length | end | answer], left-aligned. thoughts [N,M,...], end [N,1,...], answer [N,A,...], lengths [N]."""
    everything = jnp.concatenate([thoughts, end, answer], axis=1)
    total, slots = everything.shape[1], thoughts.shape[1]
    step = jnp.arange(total)
    source = jnp.where(step < lengths[:, None], step, jnp.minimum(slots + step - lengths[:, None], total - 1))
    return jnp.take_along_axis(everything, source.reshape(*source.shape, *(1,) * (everything.ndim - 2)), axis=1)


def _tokens_as_mixtures(tokens: Array, k: int) -> tuple[jax.Array, jax.Array]:
    """[N,A] -> ids [N,A,K] with the token in column 0, one-hot weights [N,A,K]."""
    ids = jnp.pad(tokens[..., None], ((0, 0), (0, 0), (0, k - 1)))
    return ids, jnp.zeros(ids.shape, jnp.float32).at[..., 0].set(1.0)


def sft_targets(thoughts: LatentLabels, answer: Array, answer_mask: Array, *, think_end_id: int, latent: bool) -> SftTargets:
    """Completion `thoughts, </think>, answer` for teacher forcing. answer int32 [N,A] with EOS, answer_mask bool [N,A] -> T = M + 1 + A."""
    rows, _, k = thoughts.ids.shape
    answer_ids, answer_weights = _tokens_as_mixtures(answer, k)
    end_ids, end_weights = _tokens_as_mixtures(jnp.full((rows, 1), think_end_id, answer.dtype), k)
    lengths = thoughts.mask.sum(-1)
    yes, no = jnp.ones((rows, 1), bool), jnp.zeros((rows, 1), bool)
    total = thoughts.ids.shape[1] + 1 + answer.shape[1]
    inside = jnp.arange(total) < (lengths + 1 + answer_mask.sum(-1))[:, None]
    mask = _join(thoughts.mask, yes, answer_mask, lengths) & inside
    is_latent = _join(thoughts.mask, no, jnp.zeros_like(answer_mask), lengths) & mask & latent
    return SftTargets(
        ids=_join(thoughts.ids, end_ids, answer_ids, lengths),
        weights=_join(thoughts.probs, end_weights, answer_weights, lengths),
        is_latent=is_latent,
        mask=mask,
    )


def chain_as_thoughts(chain: Array, mask: Array) -> LatentLabels:
    """An explicit chain [N,C] as one-token thoughts (K = 1), so that both kinds of supervised training share one path."""
    ids, probs = _tokens_as_mixtures(chain, 1)
    return LatentLabels(ids, probs, mask)


def sparse_kl(labels: Array, logps: Array) -> jax.Array:
    """KL(labels || policy) over K stored tokens, labels renormalised, policy normalised over the whole vocabulary. [*b,K], [*b,K] -> [*b], nats.

    A component with probability 0 contributes 0, whatever its log-prob. Source: tests/golden/sft.npz (kd_*).
    """
    q = labels / (jnp.sum(labels, axis=-1, keepdims=True) + 1e-12)
    terms = q * (jnp.log(jnp.maximum(q, 1e-12)) - jnp.where(q > 0, logps, 0.0))
    return jnp.sum(jnp.where(q > 0, terms, 0.0), axis=-1)


def sft_loss(targets: SftTargets, logps: Array, *, kl_weight: float) -> tuple[Mean, Mean]:
    """(cross-entropy over token steps, KL over latent steps times kl_weight), as sums and counts. logps float32 [N,T,K] at targets.ids."""
    tokens = targets.mask & ~targets.is_latent
    kl = sparse_kl(jnp.where(targets.is_latent[..., None], targets.weights, 0.0), jnp.where(targets.is_latent[..., None], logps, 0.0))
    return masked_mean(-logps[..., 0], tokens), masked_mean(kl_weight * kl, targets.is_latent & targets.mask)
