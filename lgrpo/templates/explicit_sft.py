"""Stage 1: supervised training on explicit chains.

Run: lgrpo sft explicit_sft.py --workdir runs/explicit_sft
"""

import common
from lgrpo.config import ExperimentConfig, LatentConfig, RolloutConfig, TrainConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="explicit_sft",
        model=common.MODEL,
        data=common.DATA,
        rollout=RolloutConfig(mode="explicit", max_new_tokens=36, latent=LatentConfig(k=1)),
        sft=common.SFT,
        optim=common.OPTIM,
        train=TrainConfig(num_steps=600, log_every=10),
        checkpoint=common.CHECKPOINT,
        evaluation=common.EVALUATION,
    )
