"""The paper's method with one change: the log-densities of a mixture's components are summed, as for K independent draws, instead of averaged.

Run: python -m lgrpo train experiments/ablations/gumbel_sum.py --workdir runs/ablations/gumbel_sum
Not run at length.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import PAPER

DIFF = PAPER | {"name": "gumbel_sum", "rollout.latent.law.density": "sum"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
