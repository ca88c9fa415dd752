"""The data that flows between the parts, one type per arrow (DESIGN section 2).

Axis letters, here and in every docstring: B prompts, G group size, N = B*G completions, P prompt length, T completion length
(latent steps and answer tokens), S = P + T, K mixture size, V vocabulary, D width, H/Kv heads, Dh head width, F feed-forward, L layers.
"""

from __future__ import annotations

import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray
Params = dict[str, Any]


class Finish(enum.IntEnum):
    """Why a completion ended."""

    RUNNING = 0  # only inside the decode loop
    EOS = 1
    LENGTH = 2
    FORCED_EXIT = 3  # ended by EOS, but its thinking was ended by max_latent
    NAN = 4


@struct.dataclass
class PromptBatch:
    """Prompts, padded on the left. uid is the record's index in its split: with the sample index it names a random stream."""

    tokens: Array  # int32 [B, P]
    mask: Array  # bool [B, P]
    uid: Array  # int32 [B]


@struct.dataclass
class Rollout:
    """Everything needed to replay the sampled completions. Row n = b * G + g belongs to prompt b."""

    ids: Array  # int32 [N, T, K]; answer steps carry their token in column 0
    scores: Array  # float32 [N, T, K]; log-prob plus noise of each component (0 on answer steps)
    weights: Array  # float32 [N, T, K]; mixture weights, one-hot on answer steps
    is_latent: Array  # bool [N, T]; the step feeds a mixture
    mask: Array  # bool [N, T]; generated positions
    loss_mask: Array  # bool [N, T]; generated positions that the policy chose (no forced exits)
    logps: Array  # float32 [N, T]; behaviour log-probs, 0 off the mask
    finish: Array  # int32 [N]; Finish
    chain_len: Array  # int32 [N]; steps before the end of thinking (all of them when it never came)
    thought: Array  # bool [N]; thinking ended

    @property
    def tokens(self) -> Array:
        """Emitted ids, int32 [N, T]: the heaviest component on latent steps."""
        return self.ids[..., 0]

    @property
    def answer_len(self) -> Array:
        """Steps after the end of thinking, int [N]."""
        return self.mask.sum(-1) - self.chain_len - self.thought

    @property
    def forced(self) -> Array:
        """Thinking was ended by max_latent, bool [N]: also where the answer was cut later, which Finish.FORCED_EXIT leaves out."""
        cut: Any = self.mask & ~self.loss_mask
        return cut.any(-1)


@struct.dataclass
class Scored:
    """Verdict of the host on a rollout."""

    rewards: Array  # float32 [N]
    correct: Array  # bool [N]; the answer equals the gold answer, whatever the reward pays for
    valid: Array  # bool [N]; finished, so the sample may enter group statistics
    errors: dict[str, int] = struct.field(pytree_node=False, default_factory=dict)  # grader error category -> count


@struct.dataclass
class TrainBatch:
    """What the learner sees. Leading axis B so that prompts and their groups are sharded and sliced together."""

    prompts: PromptBatch  # [B, ...]
    rollout: Rollout  # leaves [B, G, ...]
    advantages: Array  # float32 [B, G, T]
    loss_mask: Array  # bool [B, G, T]; where the policy loss has terms


@struct.dataclass
class TrainState:
    """Trained state. The optimizer itself is rebuilt from the config."""

    step: Array  # int32 []; finished RL steps or updates
    params: Params
    opt_state: Any
    nonfinite: Array  # int32 []; skipped updates in a row
    skipped: Array  # int32 []; skipped updates in all
    reference: Params | None = None  # frozen start, only kept when the KL needs it


@struct.dataclass
class Mean:
    """A mean that can be summed over micro-batches and devices before it is divided."""

    total: Array
    count: Array

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> Array:
        """total / count, and 0 when nothing was counted."""
        return self.total / jnp.maximum(self.count, 1)


@struct.dataclass
class Root(Mean):
    """The root of a mean of squares."""

    def __add__(self, other: Mean) -> Root:
        return Root(self.total + other.total, self.count + other.count)

    def value(self) -> Array:
        """sqrt(total / count), and 0 when nothing was counted."""
        return jnp.sqrt(self.total / jnp.maximum(self.count, 1))


@struct.dataclass
class Max:
    """A maximum that is combined over micro-batches and devices by taking the larger."""

    largest: Array

    def __add__(self, other: Max) -> Max:
        return Max(jnp.maximum(self.largest, other.largest))

    def value(self) -> Array:
        """The maximum; 0 when nothing was seen."""
        return jnp.where(self.largest > -jnp.inf, self.largest, 0.0)


def masked_max(values: Array, mask: Array) -> Max:
    """Largest of `values` where `mask`. Any equal shapes."""
    return Max(jnp.max(jnp.where(mask, values, -jnp.inf)))


def masked_mean(values: Array, mask: Array) -> Mean:
    """Sum and count of `values` where `mask`; what is masked may be NaN. Any equal shapes."""
    return Mean(jnp.sum(jnp.where(mask, values, 0.0)), jnp.sum(mask).astype(jnp.float32))
