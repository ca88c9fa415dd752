"""Advantages in units of the reward, not of the group's spread (Dr. GRPO, arXiv 2503.20783): a group that is nearly solved no longer counts as much as
one that is half solved.

Run: python -m lgrpo train experiments/ablations/dr_grpo.py --workdir runs/ablations/dr_grpo
Not run at length.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff

DIFF = {"name": "dr_grpo", "algo.scale": "none"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
