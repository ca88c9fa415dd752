"""Stage 2: Latent-SFT, the start that reinforcement learning needs.

Run: lgrpo sft latent_sft.py --workdir runs/latent_sft
"""

import common
import latent_grpo
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff

DIFF = {
    "name": "latent_sft",
    "sft.stage": "latent",
    "optim": common.OPTIM,
    "train.num_steps": 1600,
    "train.log_every": 10,
    "train.init_from": "runs/explicit_sft",
}


def get_config() -> ExperimentConfig:
    return apply_diff(latent_grpo.get_config(), DIFF)
