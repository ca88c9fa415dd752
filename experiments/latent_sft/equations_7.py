"""Latent-SFT on equations, 7 chain tokens per latent: one latent per equation.

Run: python -m lgrpo sft experiments/latent_sft/equations_7.py --stage all --workdir runs/latent_sft/equations_7
Measured over three seeds in docs/latent_sft.md: superposition labels 0.991, learned labels 0.601, at 8 million token positions.
"""

from experiments.latent_sft import common
from lgrpo.config import ExperimentConfig


def get_config(stage: str = "latent") -> ExperimentConfig:
    return common.stage_config("equations_7", stage)
