"""Demo, stage 2: Latent-SFT on superposition labels, one mixture per operation (7 chain tokens). The start of Latent-GRPO.

Label noise makes the latents survive some exploration; how much headroom it leaves to RL is shown by `pass@1_sampled`.
Run: python -m lgrpo sft experiments/demo/latent_sft.py --workdir runs/demo/latent_sft
Measured in docs/demo.md: pass@1 0.384, sampled 0.298, after 3.6e12 FLOP.
"""

import dataclasses

from experiments.demo import common
from lgrpo.config import ExperimentConfig, LatentConfig, RolloutConfig, TrainConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXACT


def get_config() -> ExperimentConfig:
    cfg = ExperimentConfig(
        name="latent_sft",
        model=common.MODEL,
        data=common.DEMONSTRATIONS,
        rollout=RolloutConfig(max_new_tokens=12, latent=LatentConfig(k=8)),
        sft=dataclasses.replace(common.SFT, stage="latent", compression=7, superposition="ramp", label_noise=0.5),
        optim=common.SFT_OPTIM,
        train=TrainConfig(num_steps=1600, log_every=10, init_from="runs/demo/explicit_sft"),
        checkpoint=common.CHECKPOINT,
        evaluation=common.EVALUATION,
    )
    # The sampler of the RL stage, so that both are evaluated under the same noise; supervised training updates every tensor.
    sampler = {name: value for name, value in EXACT.items() if name.startswith("rollout.")}
    return apply_diff(cfg, sampler)
