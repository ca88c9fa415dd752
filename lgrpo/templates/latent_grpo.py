"""Stage 3: Latent-GRPO with the exact density, two tokens in a mixture, without first-token selection.

Run: lgrpo train latent_grpo.py --workdir runs/latent_grpo
"""

import common
from lgrpo.config import ExperimentConfig, LatentConfig, OptimConfig, RolloutConfig, TrainConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXACT, NO_FIRST_TOKEN


def get_config() -> ExperimentConfig:
    cfg = ExperimentConfig(
        name="latent_grpo",
        model=common.MODEL,
        data=common.DATA,
        rollout=RolloutConfig(group_size=8, max_new_tokens=12, latent=LatentConfig(k=8)),
        sft=common.SFT,
        optim=OptimConfig(lr=3e-4),
        train=TrainConfig(num_steps=100, prompts_per_step=64, init_from="runs/latent_sft"),
        checkpoint=common.CHECKPOINT,
        evaluation=common.EVALUATION,
    )
    return apply_diff(cfg, EXACT | NO_FIRST_TOKEN)
