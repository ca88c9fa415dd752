"""PPO loss on step log-probs, and the KL to a frozen start. Sums and counts, never means: the division happens once, after accumulation."""

from __future__ import annotations

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
) -> tuple[Mean, dict[str, Mean | Max]]:
    """Clipped policy loss, summed over positions.

    logps (policy), old_logps (behaviour), advantages float [N,T], mask bool [N,T] -> (Mean of the loss, diagnostics). What is masked may be NaN or
    inf. For A < 0 the loss is at most dual_clip * |A| and is weighted by negative_weight. Diagnostics: policy/ratio, policy/ratio_max,
    policy/clip_frac (clipped branch strictly larger), policy/clip_frac_lower (dual clip active), policy/kl_k1 (mean of old - new).
    Source: paper appendix; tests/golden/policy_loss.npz.
    """
    logps, old_logps, advantages = (jnp.where(mask, x, 0.0).astype(jnp.float32) for x in (logps, old_logps, advantages))
    log_ratio = logps - old_logps
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
    return masked_mean(loss, mask), diagnostics


_K3_LIMIT = 10.0  # of the estimate, as in the official code
_K3_REACHED = 2.611  # where exp(d) - d - 1 reaches it


def k3_kl(logps: jax.Array, reference_logps: jax.Array, mask: jax.Array) -> Mean:
    """Low-variance estimate exp(d) - d - 1 of KL(policy || reference), d = reference - policy, summed over positions. All [N,T].

    The value is clamped to 10, as in the official code. Its slope is not: beyond the clamp it stays what it is there, since a gradient of 0 would let
    go of the policy where it has drifted most (docs/deviations.md).
    """
    d = jnp.where(mask, reference_logps - logps, 0.0)
    inside = jnp.minimum(d, _K3_REACHED)
    slope = jnp.exp(_K3_REACHED) - 1.0
    estimate = jnp.exp(inside) - inside - 1.0 + slope * (d - inside)
    value = jax.lax.stop_gradient(jnp.minimum(estimate, _K3_LIMIT))
    return masked_mean(value + estimate - jax.lax.stop_gradient(estimate), mask)
