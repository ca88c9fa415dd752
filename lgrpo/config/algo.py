"""Settings of advantages, the policy loss, dynamic sampling and adapters."""

from __future__ import annotations

import dataclasses
from typing import Literal

from lgrpo.bounds import BelowOne, Count, Natural, NonNegative, Positive
from lgrpo.config.objects import name_of

InvalidMode = Literal["keep", "zero", "exclude"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicSamplingConfig:
    """Groups without spread in their valid rewards teach nothing: drop them and draw further prompts."""

    enabled: bool = False
    """Filter groups and refill from further prompts."""
    max_rounds: Count = 8
    """Generations per step at most; then train on what is there, warn and count."""
    max_age: Natural = 2
    """Surplus groups wait at most this many steps for their turn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on every matrix of the blocks; all else is frozen. Whatever reads the checkpoint gets the merged weights."""

    rank: Natural = 0
    """Rank r; 0: full fine-tuning."""
    alpha: Positive = 128.0
    """Adapters are scaled by alpha / rank."""
    dropout: BelowOne = 0.0
    """Share of an adapter's input features left out, drawn anew for each matrix, layer and update (for all tokens together)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgoConfig:
    """Advantages and the policy loss."""

    invalid: InvalidMode = "zero"
    """Unfinished samples: keep (no stabilizer 1), zero (in the statistics, no gradient), exclude (out of both)."""
    first_token: bool = True
    """First-token selection (stabilizer 3): only the winner of a group keeps its advantage at its first position."""
    advantage: str = "group"
    """group: rewards against their group, see baseline and scale; else a function (rewards [B,G], valid [B,G]) -> [B,G] of one's own, as
    module:function or file.py:function (an experiment may give the function itself)."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What a reward is compared with: the mean of its group, or of the others in it (RLOO, arXiv 2402.14740)."""
    scale: Literal["std", "none"] = "std"
    """Advantages are divided by the standard deviation of their group's rewards, or by nothing (Dr. GRPO, arXiv 2503.20783)."""
    winner_score: Literal["response_mean", "latent_mean", "answer_mean"] = "response_mean"
    """Which mean behaviour log-prob chooses the winner among correct samples."""
    winner_must_be_valid: bool = True
    """Only finished samples can win; False is the official code under invalid=zero."""
    lone_survivor: Literal["zero", "reward"] = "zero"
    """Advantage of the only valid sample of a group under invalid=exclude; reward is the official quirk."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio of each position, or the geometric mean of those of its completion (GSPO, arXiv 2507.18071; its clips are about 3e-4)."""
    clip_low: BelowOne = 0.2
    """Ratios below 1 - clip_low are clipped."""
    clip_high: NonNegative = 0.2
    """Ratios above 1 + clip_high are clipped."""
    dual_clip: float = 3.0
    """Bound on the loss of negative advantages, in multiples of |A|."""
    negative_weight: NonNegative = 1.0
    """Weight on the loss of negative advantages."""
    loss_mean: Literal["batch", "microbatch", "sequence"] = "batch"
    """Token mean over the whole optimizer batch, or per micro-batch (official code); sequence: the mean over completions of their token means
    (GRPO as first published, GSPO)."""
    old_logps: Literal["rollout", "replay"] = "rollout"
    """Behaviour log-probs as recorded by the sampler, or recomputed by the learner before its first update."""
    kl_coef: NonNegative = 0.0
    """Weight on the k3 KL to the frozen start; 0: no reference model is kept. With adapters the start is their base, and costs no memory."""
    lora: LoraConfig = LoraConfig()
    """Adapters that RL trains in place of the weights (those of supervised training: sft.lora)."""
    dynamic: DynamicSamplingConfig = DynamicSamplingConfig()

    def __post_init__(self) -> None:
        object.__setattr__(self, "advantage", name_of(self.advantage, "algo.advantage"))
