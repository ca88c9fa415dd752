"""Baseline: latent GRPO without any stabilizer.

Run: python -m lgrpo train experiments/ablations/naive_latent.py --workdir runs/ablations/naive_latent
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import NAIVE_LATENT

DIFF = NAIVE_LATENT | {"name": "naive_latent"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
