"""The explicit model that the word settings of Latent-SFT start from.

Run: python -m lgrpo sft experiments/latent_sft/explicit_words.py --workdir runs/latent_sft/explicit_words
Not run at length.
"""

from experiments.latent_sft import common
from lgrpo.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return common.explicit_words()
