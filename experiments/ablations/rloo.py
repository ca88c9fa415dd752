"""The mean of the others in the group as baseline, and no scaling (RLOO, arXiv 2402.14740).

Run: python -m lgrpo train experiments/ablations/rloo.py --workdir runs/ablations/rloo
Not run at length.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff

DIFF = {"name": "rloo", "algo.baseline": "leave_one_out", "algo.scale": "none"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
