"""PPO loss on step log-probs, and the KL to a frozen start. Sums and counts, never means: the division happens once, after accumulation."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from lgrpo.types import Max, Mean, masked_max, masked_mean

_MAX_LOG_RATIO = 20.0  # exp(20) is far beyond every clip; bounding the log keeps exp and its gradient finite


def policy_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    negative_weight: float = 1.0,
    ratio_of: Literal["token", "sequence"] = "token",
    weights: jax.Array | None = None,
) -> tuple[Mean, dict[str, Mean | Max]]:
    """Clipped policy loss, summed over positions.

    logps (policy), old_logps (behaviour), advantages float [N,T], mask bool [N,T] -> (Mean of the loss, diagnostics). What is masked may be NaN or
    inf. For A < 0 the loss is at most dual_clip * |A| and is weighted by negative_weight. Diagnostics: policy/ratio, policy/ratio_max,
    policy/clip_frac (clipped branch strictly larger), policy/clip_frac_lower (dual clip active), policy/kl_k1 (mean of old - new).
    ratio_of="sequence": the ratio is the geometric mean of those of the row's positions (GSPO, arXiv 2507.18071). Each position gets it with the
    gradient of its own log-prob, the paper's GSPO-token, so that advantages may differ by position.
    weights: float [N,T], of the positions in the sum and in its count (default: 1 each); see sequence_weights.
    Source: paper appendix; tests/golden/policy_loss.npz.
    """
    logps, old_logps, advantages = (jnp.where(mask, x, 0.0).astype(jnp.float32) for x in (logps, old_logps, advantages))
    log_ratio = logps - old_logps
    if ratio_of == "sequence":
        mean = log_ratio.sum(-1, keepdims=True) / jnp.maximum(mask.sum(-1, keepdims=True), 1)
        log_ratio = jnp.where(mask, jax.lax.stop_gradient(mean - logps) + logps, 0.0)
    ratio = jnp.exp(jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    unclipped = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    worst = jnp.maximum(unclipped, clipped)
    negative = advantages < 0
    capped = jnp.minimum(worst, -dual_clip * advantages) * negative_weight
    loss = jnp.where(negative, capped, worst)
    diagnostics: dict[str, Mean | Max] = {
        "policy/ratio": masked_mean(ratio, mask),
        "policy/ratio_max": masked_max(ratio, mask),
        "policy/clip_frac": masked_mean((clipped > unclipped).astype(jnp.float32), mask),
        "policy/clip_frac_lower": masked_mean((negative & (worst > -dual_clip * advantages)).astype(jnp.float32), mask),
        "policy/kl_k1": masked_mean(-log_ratio, mask),
    }
    return weighted_mean(loss, mask, weights), diagnostics


def sequence_weights(mask: jax.Array) -> jax.Array:
    """Weights that make of a mean over positions the mean over rows of their means: 1 / number of positions of the row. mask [..., T]."""
    return jnp.where(mask, 1.0 / jnp.maximum(mask.sum(-1, keepdims=True), 1), 0.0)


def weighted_mean(values: jax.Array, mask: jax.Array, weights: jax.Array | None) -> Mean:
    """masked_mean with weights of the positions, in the sum and in the count."""
    if weights is None:
        return masked_mean(values, mask)
    return Mean(jnp.sum(jnp.where(mask, values * weights, 0.0)), jnp.sum(jnp.where(mask, weights, 0.0)))


def k3_kl(logps: jax.Array, reference_logps: jax.Array, mask: jax.Array, weights: jax.Array | None = None) -> Mean:
    """Low-variance estimate exp(d) - d - 1 of KL(policy || reference), d = reference - policy, summed over positions. All [N,T]; weights as in policy_loss.

    The log-ratio is clamped to [-10, 10] before the exp, so value and gradient stay finite; the estimate itself is clamped to 10, as in the official code,
    so that its gradient is 0 where the policy is more than 2.6 nats below the reference (docs/deviations.md).
    """
    d = jnp.clip(jnp.where(mask, reference_logps - logps, 0.0), -10.0, 10.0)
    return weighted_mean(jnp.clip(jnp.exp(d) - d - 1.0, -10.0, 10.0), mask, weights)
