"""Latent-SFT on chains in words, 4 chain tokens per latent.

Run: python -m lgrpo sft experiments/latent_sft/words_4.py --stage all --workdir runs/latent_sft/words_4
Not run at length.
"""

from experiments.latent_sft import common
from lgrpo.config import ExperimentConfig


def get_config(stage: str = "latent") -> ExperimentConfig:
    return common.stage_config("words_4", stage)
