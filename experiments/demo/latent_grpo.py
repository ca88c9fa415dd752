"""Demo, stage 3: Latent-GRPO. Unclamped noise on the whole vocabulary with its exact density, and all stabilizers that apply to it.

The base of experiments/ablations. What the paper's preset does on this task is in docs/study.md.
Run: python -m lgrpo train experiments/demo/latent_grpo.py --workdir runs/demo/latent_grpo
Measured in docs/demo.md: pass@1 0.448, sampled 0.420, after 3.1e12 FLOP.
"""

from experiments.demo import common
from lgrpo.config import ExperimentConfig, LatentConfig, OptimConfig, RolloutConfig, TrainConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXACT


def get_config() -> ExperimentConfig:
    cfg = ExperimentConfig(
        name="latent_grpo",
        model=common.MODEL,
        data=common.DATA,
        rollout=RolloutConfig(group_size=8, max_new_tokens=12, latent=LatentConfig(k=8)),
        optim=OptimConfig(lr=3e-4),
        train=TrainConfig(num_steps=400, prompts_per_step=64, init_from="runs/demo/latent_sft"),
        checkpoint=common.CHECKPOINT,
        evaluation=common.EVALUATION,
    )
    return apply_diff(cfg, EXACT)
