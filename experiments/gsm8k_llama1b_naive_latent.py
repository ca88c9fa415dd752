"""Baseline of gsm8k_llama1b: GRPO on latents without any of the three stabilizers; everything else is equal.

Run: python -m lgrpo train experiments/gsm8k_llama1b_naive_latent.py --workdir runs/gsm8k_llama1b_naive_latent
Not run here: it needs accelerators.
"""

from experiments import gsm8k_llama1b as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import NAIVE_LATENT

DIFF = NAIVE_LATENT | {"name": "gsm8k_llama1b_naive_latent"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
