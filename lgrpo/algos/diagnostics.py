"""What goes wrong in latent RL, measured on the batch of every update: states off the manifold of labels, misaligned updates, where the gradient
goes. Nothing here has a gradient or changes a number elsewhere. What each metric says about a failure is in docs/diagnostics.md.

Sums and counts, as in policy_loss: they are added over micro-batches and divided once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp

from lgrpo.algos.advantages import sample_advantages, winner_scores, winners
from lgrpo.config import AlgoConfig, LatentConfig, RolloutConfig
from lgrpo.latent.law import Step, TokenLogps
from lgrpo.latent.replay import latent_terms
from lgrpo.types import Array, Max, Mean, Rollout, Root, masked_max, masked_mean

TOLERANCE = 1e-2
"""Nats within which a margin or a slope counts as the value that it should have: log-probs of learner and sampler differ by rounding."""
EDGES = (-2, -1, 0, 1, 2, 3, 4, 5)
"""Of the margins' histogram, in units of the density's argument."""
BINS = (f"below_{EDGES[0]}", *(f"{low}_to_{high}" for low, high in pairwise(EDGES)), f"from_{EDGES[-1]}")
FIRST_UPDATE = ("diag/clamp_low", "diag/clamp_high")
"""Meaningful only before the weights have moved: the noise is the recorded score minus the log-prob that the sampler had."""
Metrics = dict[str, Mean | Max]


def mixture_state(weights: Array, where: Array) -> Metrics:
    """How far mixtures are from one token. weights float [N,T,K], where bool [N,T] (latent steps). The effective support is exp(entropy)."""
    entropy = -jnp.where(weights > 0, weights * jnp.log(jnp.where(weights > 0, weights, 1.0)), 0.0).sum(-1)
    return {
        "diag/entropy": masked_mean(entropy, where),
        "diag/effective_support": masked_mean(jnp.exp(entropy), where),
        "diag/max_weight": masked_mean(weights.max(-1), where),
    }


def outside_top_k(weights: Array, logps: Array, kth: Array, where: Array) -> Mean:
    """Share of mixture mass on tokens less likely than the K-th most likely one. weights, logps [N,T,K], kth and where [N,T]. Ties are inside."""
    return masked_mean(jnp.where(logps < kth[..., None], weights, 0.0).sum(-1), where)


def margin_histogram(margin: Array, where: Array) -> Metrics:
    """Shares of components by margin; a margin within TOLERANCE below an edge belongs above it. margin [N,T,K], where bool [N,T]."""
    inside = jnp.broadcast_to(where[..., None], margin.shape)
    index = sum((margin >= edge - TOLERANCE).astype(jnp.int32) for edge in EDGES)
    return {f"diag/margin_hist_{name}": masked_mean((index == i).astype(jnp.float32), inside) for i, name in enumerate(BINS)}


def clamp_atoms(latent: LatentConfig, scores: Array, logps: Array, where: Array) -> Metrics:
    """Shares of components whose noise sits at the clamp's ends, where the noise has atoms. {} for a law without them.

    Continuous noise lies within TOLERANCE of an end by chance too: less than 0.1 % for the clamp (-1.5, 3) at scale 1.
    """
    if (ends := latent.law.atoms(latent)) is None:
        return {}
    noise, inside = scores - logps, jnp.broadcast_to(where[..., None], scores.shape)

    def at(end: float) -> Mean:
        return masked_mean((jnp.abs(noise - end) <= TOLERANCE).astype(jnp.float32), inside)

    return {"diag/clamp_low": at(ends[0]), "diag/clamp_high": at(ends[1])}


def slopes(latent: LatentConfig, step: Step, tokens: TokenLogps, advantages: Array, table: Array | None = None) -> jax.Array:
    """Derivative of each step's log-prob in the log-prob of each component, the others and the rest held fixed. [N,T,K].

    By differentiation of the law that is trained on, score gradients included, so that the two cannot disagree: 1 - exp(-x) over K, or times
    the weight, for Gumbel noise; 1 - K pi_k exp(-a_k) / (sum_j pi_j exp(-a_j) + exp(-a_K) rest) for its exact density.
    """
    scale = jnp.full(step.ids.shape[:-1], latent.noise_scale if latent.noise_scale > 0 else 1.0, jnp.float32)
    gradient = advantages if latent.law.reads_advantages else None

    def total(chosen: jax.Array) -> jax.Array:
        return latent.law.logp(latent, step, tokens._replace(chosen=chosen), scale, table=table, advantages=gradient).sum()

    return jax.grad(total)(tokens.chosen)


def misalignment(slope: Array, weights: Array, advantages: Array, where: Array) -> Metrics:
    """Components that the update moves against the advantage: slope times A has the sign opposite to A. slope, weights [N,T,K]; rest [N,T].

    Only steps with an advantage count. `mass` weighs a component by its mixture weight; the last two split the share by the sign of A.
    """
    moved = where & (advantages != 0)
    wrong = (slope < -TOLERANCE / slope.shape[-1]).astype(jnp.float32)

    def share(steps: Array) -> Mean:
        return masked_mean(wrong, jnp.broadcast_to(steps[..., None], wrong.shape))

    return {
        "diag/misaligned_share": share(moved),
        "diag/misaligned_mass": masked_mean((wrong * weights).sum(-1), moved),
        "diag/misaligned_share_good": share(moved & (advantages > 0)),
        "diag/misaligned_share_bad": share(moved & (advantages < 0)),
    }


def trigger_rate(margin: Array, advantages: Array, where: Array) -> Mean:
    """Share of components where a score gradient acts, or would: margin below 0 and advantage not positive. margin [N,T,K], others [N,T]."""
    hit = (margin < -TOLERANCE) & (advantages <= 0)[..., None]
    return masked_mean(hit.astype(jnp.float32), jnp.broadcast_to(where[..., None], hit.shape))


def gradient_norms(gradient: Array, slope: Array | None, types: dict[str, Array], mask: Array) -> Metrics:
    """Root mean squares of the loss' derivative in the step log-probs, by type of position. gradient, mask and each type [N,T]; slope [N,T,K].

    gradient is g = d(summed loss)/d(step log-prob): -A * ratio times what the clips leave. The norm of g over the positions of a type is divided
    by the root of the number of all positions in the loss, so that squares of the types add up to that of all, whatever their numbers.
    `latent_components` is the same for the derivative in the components' log-probs, g times slope: what the density makes of g.
    """
    count = mask.sum().astype(jnp.float32)
    squares = {name: jnp.where(mask & where, jnp.square(gradient), 0.0) for name, where in types.items()}
    if slope is not None:
        squares["latent_components"] = jnp.where(mask & types["latent"], jnp.square(gradient) * jnp.square(slope).sum(-1), 0.0)
    return {f"diag/gradient_{name}": Root(x.sum(), count) for name, x in squares.items()}


def update_diagnostics(
    rollout: Rollout,
    advantages: Array,
    loss_mask: Array,
    logps: Array,
    tokens: TokenLogps,
    table: Array,
    loss: Callable[[jax.Array], jax.Array],
    cfg: RolloutConfig,
) -> Metrics:
    """All diagnostics of a slice. rollout leaves [B,G,...]; advantages, loss_mask, logps (replayed) [B,G,T]; tokens as `replay` returns them;
    table: the embedding table [V,D].

    loss: the summed policy loss as a function of the step log-probs [B,G,T].
    """
    logps, tokens = jax.lax.stop_gradient((logps, tokens))

    def flat(x: Array) -> jax.Array:
        return jnp.asarray(x).reshape(-1, *x.shape[2:])

    gradient, mask, a, is_latent = (flat(x) for x in (jax.grad(loss)(logps), loss_mask, advantages, rollout.is_latent & rollout.mask))
    thinking = cfg.mode == "latent"
    at = jnp.arange(mask.shape[-1])
    is_exit = flat(rollout.thought)[:, None] & (at == flat(rollout.chain_len)[:, None])
    types = {"latent": is_latent, "exit": is_exit, "answer": ~is_latent & ~is_exit}
    if not thinking:
        return gradient_norms(gradient, None, {"exit": is_exit, "answer": types["answer"]}, mask)
    recorded, safe = latent_terms(is_latent, Step(flat(rollout.ids), flat(rollout.scores), flat(rollout.weights)), tokens)
    weights = jnp.where(is_latent[..., None], recorded.weights, 0.0)
    latent, counted = cfg.latent, is_latent & mask
    slope = slopes(latent, recorded, safe, a, table)
    out = mixture_state(weights, is_latent) | clamp_atoms(latent, recorded.scores, safe.chosen, is_latent)
    out |= misalignment(slope, weights, a, counted) | gradient_norms(gradient, slope, types, mask)
    out["diag/exit_probability"] = masked_mean(jnp.exp(flat(logps)), is_exit & mask)
    if latent.law.scored:
        margin = latent.law.margins(latent, recorded, safe.chosen)
        out |= margin_histogram(margin, is_latent)
        if latent.law.signed:
            out["diag/score_gradient_rate"] = trigger_rate(margin, a, counted)
    if tokens.kth is not None:
        out["diag/outside_top_k"] = outside_top_k(weights, safe.chosen, tokens.kth, is_latent)
        out["diag/end_probability"] = masked_mean(jnp.exp(tokens.end), is_latent)
        out["diag/end_probability_max"] = masked_max(jnp.exp(tokens.end), is_latent)
    return out


def group_diagnostics(rollout: Rollout, rewards: Array, valid: Array, cfg: AlgoConfig) -> dict[str, jax.Array]:
    """Winners of first-token selection, with or without it. rollout leaves [B,G,...], rewards and valid [B,G]. Scalars.

    diag/winner_share: groups that have a winner. diag/winner_latent_share: latent part of the winners' steps.
    """
    won = winners(sample_advantages(rewards, valid, cfg), winner_scores(rollout, valid, cfg))
    steps = won[..., None] & rollout.mask
    share = masked_mean(jnp.asarray(rollout.is_latent, jnp.float32), steps).value()
    return {"diag/winner_share": won.any(-1).mean(), "diag/winner_latent_share": share}
