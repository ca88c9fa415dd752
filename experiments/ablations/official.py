"""The released code with its quirks: answers drawn as Gumbel top-1, bounded score gradient, loss mean per micro-batch.

Run: python -m lgrpo train experiments/ablations/official.py --workdir runs/ablations/official
Measured over five seeds, 100 steps at 1e-4 from the starts of docs/study.md: noise-free 0.796, sampled 0.547. 40 to 160 s of one core a run.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import OFFICIAL

DIFF = OFFICIAL | {"name": "official"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
