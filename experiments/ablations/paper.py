"""The method as the paper describes it: clamped one-sided noise, mean Gumbel density, all three stabilizers.

Run: python -m lgrpo train experiments/ablations/paper.py --workdir runs/ablations/paper
Measured over five seeds, 100 steps at 1e-4 from the starts of docs/study.md: noise-free 0.778, sampled 0.520. 40 to 160 s of one core a run.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import PAPER

DIFF = PAPER | {"name": "paper"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
