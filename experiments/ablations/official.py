"""The released code with its quirks: answers drawn as Gumbel top-1, bounded score gradient, loss mean per micro-batch.

Run: python -m lgrpo train experiments/ablations/official.py --workdir runs/ablations/official
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import OFFICIAL

DIFF = OFFICIAL | {"name": "official"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
