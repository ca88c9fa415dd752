"""Latent-SFT on equations, 2 chain tokens per latent.

Run: python -m lgrpo sft experiments/latent_sft/equations_2.py --stage all --workdir runs/latent_sft/equations_2
Not run at length.
"""

from experiments.latent_sft import common
from lgrpo.config import ExperimentConfig


def get_config(stage: str = "latent") -> ExperimentConfig:
    return common.stage_config("equations_2", stage)
