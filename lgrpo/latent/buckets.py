"""Widths that follow the batch: padding that no row of it needs is cut before the compiled steps. One compilation per width."""

from __future__ import annotations

import jax
import numpy as np

from lgrpo.types import PromptBatch, Rollout


def bucket(needed: int, multiple: int, limit: int) -> int:
    """Smallest multiple of `multiple` that holds `needed`, at least one and at most `limit`; `limit` where multiple is 0."""
    return min(max(-(-needed // multiple), 1) * multiple, limit) if multiple else limit


def trim_prompts(prompts: PromptBatch, multiple: int) -> PromptBatch:
    """Left padding that no prompt of the host batch [B, P] needs, cut to a multiple of `multiple` columns."""
    width = prompts.mask.shape[-1]
    if not multiple:
        return prompts
    keep = bucket(int(np.asarray(prompts.mask).sum(-1).max()), multiple, width)
    return PromptBatch(prompts.tokens[:, width - keep :], prompts.mask[:, width - keep :], prompts.uid)


def longest(rollout: Rollout) -> int:
    """Steps of the longest completion, of global arrays too: only this number leaves the devices. Waits for the mask."""
    return int(rollout.mask.sum(-1).max(initial=0))


def trim_completions(rollout: Rollout, multiple: int) -> Rollout:
    """Steps that no completion has, cut to a multiple of `multiple`. Leaves [B, G, T, ...] or [B, G]."""
    length = rollout.mask.shape[-1]
    if not multiple:
        return rollout
    keep = bucket(longest(rollout), multiple, length)
    return jax.tree.map(lambda x: x[:, :, :keep] if x.ndim > 2 else x, rollout)
