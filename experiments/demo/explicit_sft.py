"""Demo, stage 1: supervised training on explicit chains. The model that all others start from.

Run: python -m lgrpo sft experiments/demo/explicit_sft.py --workdir runs/demo/explicit_sft
Measured in docs/demo.md: pass@1 0.706 after 2.3e12 FLOP.
"""

import dataclasses

from experiments.demo import common
from lgrpo.config import AnswerConfig, ExperimentConfig, LatentConfig, RolloutConfig, TrainConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="explicit_sft",
        model=common.MODEL,
        data=common.DEMONSTRATIONS,
        rollout=RolloutConfig(mode="explicit", max_new_tokens=36, latent=LatentConfig(k=1), answer=AnswerConfig(temperature=1.0)),
        sft=dataclasses.replace(common.SFT, stage="explicit"),
        optim=common.SFT_OPTIM,
        train=TrainConfig(num_steps=600, log_every=10),
        checkpoint=common.CHECKPOINT,
        evaluation=common.EVALUATION,
    )
