"""Baseline: Soft-GRPO, noise on the K most likely tokens only, nearly hard mixtures.

Run: python -m lgrpo train experiments/ablations/soft_grpo.py --workdir runs/ablations/soft_grpo
Measured over five seeds, 100 steps at 1e-4 from the starts of docs/study.md: noise-free 0.763, sampled 0.366. 40 to 160 s of one core a run.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import SOFT_GRPO

DIFF = SOFT_GRPO | {"name": "soft_grpo"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
