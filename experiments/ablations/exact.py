"""Unclamped noise and its exact density. The base is this already, so the diff changes the name only.

Run: python -m lgrpo train experiments/ablations/exact.py --workdir runs/ablations/exact
Measured over five seeds, 100 steps at 1e-4 from the starts of docs/study.md: noise-free 0.912, sampled 0.641. 40 to 160 s of one core a run.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXACT

DIFF = EXACT | {"name": "exact"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
