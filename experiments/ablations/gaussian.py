"""Baseline: soft tokens with Gaussian noise on the embedding instead of Gumbel noise on the mixture (arXiv 2509.19170).

Run: python -m lgrpo train experiments/ablations/gaussian.py --workdir runs/ablations/gaussian
Not run at length.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import GAUSSIAN

DIFF = GAUSSIAN | {"name": "gaussian"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
