"""Named methods as config diffs: what the paper says, what the released code does, what we derive, and the baselines.

A preset sets every field it is about, so it means the same on any base. Model, data, optimizer and budget are the experiment's.
Modules in experiments/ablations apply them; docs/deviations.md explains each line.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gaussian import Gaussian
from lgrpo.latent.laws.gumbel import Gumbel

Diff = dict[str, Any]

PAPER_LAW = Gumbel(
    one_sided=True,
    delta=0.0,
    clamp=(-1.5, 3.0),
    top_p=0.95,
    order="perturb_then_topk",
    end_rule="argmax",
    density="mean",
    density_scale="noise",
    score_gradient="aligned",
)

PAPER: Diff = {
    "rollout.mode": "latent",
    "rollout.latent.tau": 1.0,
    "rollout.latent.noise_scale": 1.0,
    "rollout.latent.law": PAPER_LAW,
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
    "rollout.latent.law": dataclasses.replace(PAPER_LAW, density_scale="unit", score_gradient="bounded"),
    "rollout.answer.sampler": "gumbel_top1",
    "algo.winner_must_be_valid": False,
    "algo.lone_survivor": "reward",
    "algo.loss_mean": "microbatch",
}
"""The released code, with its quirks."""

EXACT: Diff = PAPER | {"rollout.latent.law": Exact(), "rollout.answer.temperature": 1.0}
"""Unclamped noise on the whole vocabulary, and the density of exactly that; one-sidedness has no meaning here. For new experiments, there with
NO_FIRST_TOKEN: docs/study.md."""

NO_INVALID_MASKING: Diff = {"algo.invalid": "keep"}
NO_ONE_SIDED: Diff = {"rollout.latent.law.one_sided": False, "rollout.latent.law.score_gradient": "plain"}
NO_FIRST_TOKEN: Diff = {"algo.first_token": False}

NAIVE_LATENT: Diff = PAPER | NO_INVALID_MASKING | NO_ONE_SIDED | NO_FIRST_TOKEN
"""GRPO on latents without any stabilizer."""

EXPLICIT: Diff = {
    "rollout.mode": "explicit",
    "rollout.latent.k": 1,
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
    "rollout.latent.law.order": "topk_then_perturb",
    "rollout.latent.law.clamp": None,
}
"""Soft-GRPO: noise only on the K most likely tokens, two-sided, nearly hard mixtures."""

GAUSSIAN: Diff = PAPER | NO_INVALID_MASKING | NO_FIRST_TOKEN | {"rollout.latent.law": Gaussian(sigma=0.33), "rollout.latent.tau": 0.5}
"""Soft tokens with Gaussian noise on the embedding (arXiv 2509.19170), in the paper's trainer without its stabilizers."""
