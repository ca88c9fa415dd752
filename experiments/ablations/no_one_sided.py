"""The paper's method without stabilizer 2: two-sided noise.

Run: python -m lgrpo train experiments/ablations/no_one_sided.py --workdir runs/ablations/no_one_sided
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import NO_ONE_SIDED, PAPER

DIFF = PAPER | NO_ONE_SIDED | {"name": "no_one_sided"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
