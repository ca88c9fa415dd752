"""Stage 1 of Latent-SFT by itself: encoder and decoder learn together.

Starts from runs/latent_sft/equations_7/decoder; `equations_7.py --stage union` is the same run inside the chain.
Run: python -m lgrpo sft experiments/latent_sft/union.py --workdir runs/latent_sft/equations_7/union
Not run at length.
"""

from experiments.latent_sft import common
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff


def get_config() -> ExperimentConfig:
    return apply_diff(
        common.stage_config("equations_7", "union"), {"name": "union", "train.init_from": "runs/latent_sft/equations_7/decoder"}
    )
