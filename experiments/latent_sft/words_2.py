"""Latent-SFT on chains in words, 2 chain tokens per latent.

Run: python -m lgrpo sft experiments/latent_sft/words_2.py --stage all --workdir runs/latent_sft/words_2
Not run at length.
"""

from experiments.latent_sft import common
from lgrpo.config import ExperimentConfig


def get_config(stage: str = "latent") -> ExperimentConfig:
    return common.stage_config("words_2", stage)
