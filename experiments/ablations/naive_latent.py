"""Baseline: latent GRPO without any stabilizer.

Run: python -m lgrpo train experiments/ablations/naive_latent.py --workdir runs/ablations/naive_latent
Measured over five seeds, 100 steps at 1e-4 from the starts of docs/study.md: noise-free 0.925, sampled 0.728. 40 to 160 s of one core a run.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import NAIVE_LATENT

DIFF = NAIVE_LATENT | {"name": "naive_latent"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
