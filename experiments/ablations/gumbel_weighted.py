"""The paper's method with one change: components of a mixture count in the density by their weight instead of equally.

Run: python -m lgrpo train experiments/ablations/gumbel_weighted.py --workdir runs/ablations/gumbel_weighted
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import PAPER

DIFF = PAPER | {"name": "gumbel_weighted", "rollout.latent.law.density": "weighted"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
