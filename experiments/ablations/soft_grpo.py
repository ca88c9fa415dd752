"""Baseline: Soft-GRPO, noise on the K most likely tokens only, nearly hard mixtures.

Run: python -m lgrpo train experiments/ablations/soft_grpo.py --workdir runs/ablations/soft_grpo
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import SOFT_GRPO

DIFF = SOFT_GRPO | {"name": "soft_grpo"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
