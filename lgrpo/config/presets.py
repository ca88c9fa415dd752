"""Named methods as config diffs: what the paper says, what the released code does, what we derive, and the baselines.

A preset sets every field it is about, so it means the same on any base. Model, data, optimizer and budget are the experiment's.
Modules in experiments/ablations apply them; docs/deviations.md explains each line.
"""

from __future__ import annotations

from typing import Any

Diff = dict[str, Any]

PAPER: Diff = {
    "rollout.mode": "latent",
    "rollout.latent.tau": 1.0,
    "rollout.latent.noise_scale": 1.0,
    "rollout.latent.one_sided": True,
    "rollout.latent.delta": 0.0,
    "rollout.latent.clamp": (-1.5, 3.0),
    "rollout.latent.top_p": 0.95,
    "rollout.latent.order": "perturb_then_topk",
    "rollout.latent.end_rule": "argmax",
    "rollout.latent.density": "gumbel_mean",
    "rollout.latent.density_scale": "noise",
    "rollout.latent.score_gradient": "aligned",
    "rollout.answer.sampler": "sample",
    "rollout.answer.temperature": 0.6,
    "algo.invalid": "zero",
    "algo.first_token": True,
    "algo.winner_score": "response_mean",
    "algo.winner_must_be_valid": True,
    "algo.lone_survivor": "zero",
    "algo.loss_mean": "batch",
    "optim.freeze_embed": True,
    "optim.freeze_unembed": True,
}
"""The method as the paper describes it, in its low-difficulty setting."""

OFFICIAL: Diff = PAPER | {
    "rollout.latent.density_scale": "unit",
    "rollout.latent.score_gradient": "bounded",
    "rollout.answer.sampler": "gumbel_top1",
    "algo.winner_must_be_valid": False,
    "algo.lone_survivor": "reward",
    "algo.loss_mean": "microbatch",
}
"""The released code, with its quirks."""

EXACT: Diff = PAPER | {
    "rollout.latent.one_sided": False,
    "rollout.latent.clamp": None,
    "rollout.latent.top_p": 1.0,
    "rollout.latent.end_rule": "sampled",
    "rollout.latent.density": "exact",
    "rollout.latent.score_gradient": "plain",
    "rollout.answer.temperature": 1.0,
}
"""Unclamped noise on the whole vocabulary, and the density of exactly that; one-sidedness has no meaning here. For new experiments, there with
NO_FIRST_TOKEN: docs/study.md."""

NO_INVALID_MASKING: Diff = {"algo.invalid": "keep"}
NO_ONE_SIDED: Diff = {"rollout.latent.one_sided": False, "rollout.latent.score_gradient": "plain"}
NO_FIRST_TOKEN: Diff = {"algo.first_token": False}

NAIVE_LATENT: Diff = PAPER | NO_INVALID_MASKING | NO_ONE_SIDED | NO_FIRST_TOKEN
"""GRPO on latents without any stabilizer."""

EXPLICIT: Diff = {
    "rollout.mode": "explicit",
    "rollout.latent.k": 1,
    "rollout.latent.score_gradient": "plain",
    "rollout.answer.sampler": "sample",
    "rollout.answer.temperature": 1.0,
    "algo.invalid": "zero",
    "algo.first_token": False,
    "algo.loss_mean": "batch",
    "algo.lone_survivor": "zero",
}
"""Chain-of-thought GRPO. The experiment must allow for longer completions."""

SOFT_GRPO: Diff = NAIVE_LATENT | {
    "rollout.latent.k": 5,
    "rollout.latent.tau": 0.1,
    "rollout.latent.order": "topk_then_perturb",
    "rollout.latent.clamp": None,
}
"""Soft-GRPO: noise only on the K most likely tokens, two-sided, nearly hard mixtures."""
