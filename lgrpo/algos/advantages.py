"""Group-relative advantages, invalid-sample masking and first-token selection (DESIGN section 5, stabilizers 1 and 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lgrpo.config import AlgoConfig, InvalidMode
from lgrpo.config.objects import find_object
from lgrpo.errors import UserError
from lgrpo.types import Array, Rollout

_EPS = 1e-6


def group_advantages(
    rewards: Array,
    valid: Array,
    *,
    invalid: InvalidMode = "zero",
    lone_survivor: Literal["zero", "reward"] = "zero",
    zero_last: bool = False,
    baseline: Literal["mean", "leave_one_out"] = "mean",
    scale: Literal["std", "none"] = "std",
) -> jax.Array:
    """(r - mean) / (std + 1e-6) within each group, std with ddof 1, over the samples that count.

    rewards float [B,G], valid bool [B,G] -> float32 [B,G]. invalid: `keep` counts every sample; `zero` counts every sample but gives invalid ones
    no advantage; `exclude` takes them out of mean and std too. Where all counted rewards are equal, or fewer than two samples are valid, the
    whole group is 0; lone_survivor="reward" gives a single counted sample its raw reward (official code, mean 0 and std 1).
    zero_last=True leaves the zeroing of `zero` to the caller, as the official code does, whose winner may be invalid.
    baseline="leave_one_out" compares with the mean of the others, r - (sum - r) / (n - 1) = (r - mean) n / (n - 1) (RLOO, arXiv 2402.14740);
    scale="none" divides by nothing, so that groups weigh by their spread (Dr. GRPO, arXiv 2503.20783).
    """
    if invalid not in ("keep", "zero", "exclude"):
        raise ValueError(f"invalid {invalid!r} is unknown; use keep, zero or exclude")
    rewards, valid = jnp.asarray(rewards, jnp.float32), jnp.asarray(valid, bool)
    counted = valid if invalid == "exclude" else jnp.ones_like(valid)
    n = counted.sum(-1, keepdims=True)
    safe = jnp.where(counted, rewards, 0.0)
    mean = safe.sum(-1, keepdims=True) / jnp.maximum(n, 1)
    centred = jnp.where(counted, rewards - mean, 0.0)
    std = jnp.sqrt(jnp.square(centred).sum(-1, keepdims=True) / jnp.maximum(n - 1, 1))
    highest = jnp.max(jnp.where(counted, rewards, -jnp.inf), axis=-1, keepdims=True)
    lowest = jnp.min(jnp.where(counted, rewards, jnp.inf), axis=-1, keepdims=True)
    # Exact equality, not std > 0: rounding in the mean would be blown up a million times by the epsilon.
    spread = (n > 1) & (highest > lowest)
    if baseline == "leave_one_out":
        centred = centred * n / jnp.maximum(n - 1, 1)
    out = jnp.where(spread, centred / (std + _EPS) if scale == "std" else centred, 0.0)
    if lone_survivor == "reward":
        out = jnp.where((n == 1) & counted, rewards / (1.0 + _EPS), out)
    elif invalid == "zero":
        out = jnp.where(valid.sum(-1, keepdims=True) > 1, out, 0.0)
    if invalid == "zero" and not zero_last:
        out = jnp.where(valid, out, 0.0)
    return out


def winners(advantages: Array, winner_scores: Array) -> jax.Array:
    """The winner of each group, bool [B,G]; a group without a sample that can win has none. Arguments as in token_advantages."""
    candidates = (jnp.asarray(advantages) > 0) & (jnp.asarray(winner_scores) > -jnp.inf)
    winner = jnp.argmax(jnp.where(candidates, winner_scores, -jnp.inf), axis=-1, keepdims=True)
    return (jnp.arange(candidates.shape[-1]) == winner) & candidates.any(-1, keepdims=True)


def sample_advantages(rewards: Array, valid: Array, cfg: AlgoConfig) -> jax.Array:
    """group_advantages under `cfg`, before they are spread over positions. [B,G] -> float32 [B,G]."""
    late = cfg.invalid == "zero" and not cfg.winner_must_be_valid
    if cfg.advantage != "group":
        out = _checked(find_advantage(cfg.advantage)(jnp.asarray(rewards, jnp.float32), jnp.asarray(valid, bool)), rewards, cfg.advantage)
        return out if cfg.invalid == "keep" or late else jnp.where(valid, out, 0.0)
    how = {"baseline": cfg.baseline, "scale": cfg.scale}
    return group_advantages(rewards, valid, invalid=cfg.invalid, lone_survivor=cfg.lone_survivor, zero_last=late, **how)


def find_advantage(name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The function that algo.advantage names. Errors: UserError."""
    found = find_object(name, "algo.advantage") if ":" in name else None
    if not callable(found):
        raise UserError(
            f"algo.advantage {name!r}: no function (rewards, valid) -> advantages; use group, or give module:function or file.py:function"
        )
    return found


def _checked(found: Any, rewards: Array, name: str) -> jax.Array:
    """Errors: UserError for another shape than that of the rewards."""
    out = jnp.asarray(found, jnp.float32)
    if out.shape != rewards.shape:
        raise UserError(
            f"algo.advantage {name}: it returned shape {out.shape} for rewards of shape {rewards.shape}; give one number for each"
        )
    return out


def token_advantages(advantages: Array, winner_scores: Array, completion_mask: Array, *, first_token: bool = True) -> jax.Array:
    """Spreads advantages over positions; with first-token selection only the winner of a group keeps its first one.

    advantages [B,G], winner_scores [B,G] (mean behaviour log-probs; -inf: cannot win), completion_mask bool [B,G,T] -> float32 [B,G,T].
    The winner is the sample with the highest score among those with positive advantage (ties: the lowest index). A group without one is left alone.
    """
    advantages = jnp.asarray(advantages, jnp.float32)
    completion_mask = jnp.asarray(completion_mask, bool)
    out = jnp.where(completion_mask, advantages[..., None], 0.0)
    if not first_token:
        return out
    won = winners(advantages, winner_scores)
    keeps = won | ~won.any(-1, keepdims=True)
    first = jnp.cumsum(completion_mask, axis=-1) == 1
    return jnp.where(first & ~keeps[..., None], 0.0, out)


def winner_scores(rollout: Rollout, valid: Array, cfg: AlgoConfig) -> jax.Array:
    """Mean behaviour log-prob of each sample over the positions that cfg.winner_score names. rollout leaves [B,G,...] -> float32 [B,G].

    A sample without such positions, and an invalid one unless cfg allows it, cannot win (-inf).
    """
    where = {
        "response_mean": rollout.loss_mask,
        "latent_mean": rollout.loss_mask & rollout.is_latent,
        "answer_mean": rollout.loss_mask & ~rollout.is_latent,
    }[cfg.winner_score]
    count = where.sum(-1)
    mean = jnp.where(where, rollout.logps, 0.0).sum(-1) / jnp.maximum(count, 1)
    eligible = (count > 0) & (valid if cfg.winner_must_be_valid else True)
    return jnp.where(eligible, mean, -jnp.inf)


def rollout_advantages(rollout: Rollout, rewards: Array, valid: Array, cfg: AlgoConfig) -> jax.Array:
    """Position advantages of a rollout under `cfg`. rollout leaves [B,G,...], rewards and valid [B,G] -> float32 [B,G,T]."""
    late = cfg.invalid == "zero" and not cfg.winner_must_be_valid
    per_sample = sample_advantages(rewards, valid, cfg)
    scores = winner_scores(rollout, valid, cfg)
    out = token_advantages(per_sample, scores, rollout.mask, first_token=cfg.first_token)
    return jnp.where(valid[..., None], out, 0.0) if late else out
