"""The paper's method without stabilizer 2: two-sided noise.

Run: python -m lgrpo train experiments/ablations/no_one_sided.py --workdir runs/ablations/no_one_sided
Measured over five seeds, 100 steps at 1e-4 from the starts of docs/study.md: noise-free 0.918, sampled 0.712. 40 to 160 s of one core a run.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import NO_ONE_SIDED, PAPER

DIFF = PAPER | NO_ONE_SIDED | {"name": "no_one_sided"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
