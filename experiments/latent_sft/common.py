"""What the settings of Latent-SFT share. A setting is a task (chains as equations or in words) and a compression rate."""

import dataclasses

from experiments.demo import common
from lgrpo.config import (
    AnswerConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LatentConfig,
    OptimConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
)
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXACT

# name -> (difficulty, longest chain in tokens, compression). An equation `<<3+4=7>>` has 7 tokens, a sentence 9.
SETTINGS = {
    "equations_7": ("demo", 28, 7),
    "equations_4": ("demo", 28, 4),
    "equations_2": ("demo", 28, 2),
    "words_4": ("demo_words", 36, 4),
    "words_2": ("demo_words", 36, 2),
}
STEPS = {"encoder": 600, "decoder": 300, "union": 600, "latent": 1600}
START = {"demo": "runs/demo/explicit_sft", "demo_words": "runs/latent_sft/explicit_words"}


def stage_config(setting: str, stage: str = "latent") -> ExperimentConfig:
    """Config of one stage of a setting. The embedding table is frozen throughout stage 1, so that labels mean the same vectors to every model."""
    difficulty, max_chain, compression = SETTINGS[setting]
    stage1 = stage != "latent"
    sft = dataclasses.replace(common.SFT, stage=stage, compression=compression, max_chain=max_chain, label_noise=0.0 if stage1 else 0.5)
    cfg = ExperimentConfig(
        name=setting if stage == "latent" else f"{setting}_{stage}",
        model=common.MODEL,
        data=DataConfig(difficulty=difficulty, max_prompt=40, eval_split="valid"),
        rollout=RolloutConfig(max_new_tokens=-(-max_chain // compression) + 8, latent=LatentConfig(k=8)),
        sft=dataclasses.replace(sft, heldout=512),
        optim=OptimConfig(lr=3e-3, schedule="cosine", warmup=50, b2=0.98, freeze_embed=stage1),
        train=TrainConfig(num_steps=STEPS[stage], log_every=10, init_from=START[difficulty]),
        checkpoint=CheckpointConfig(every=100, keep=1, keep_best=True),
        evaluation=EvaluationConfig(every=200, problems=250, samples=4, batch=250),
    )
    # The sampler of the demo's RL stage; supervised training updates every tensor but those frozen above.
    return apply_diff(cfg, {name: value for name, value in EXACT.items() if name.startswith("rollout.")})


def explicit_words() -> ExperimentConfig:
    """The explicit model of the word settings; for equations it is that of the demo."""
    return ExperimentConfig(
        name="explicit_words",
        model=common.MODEL,
        data=DataConfig(difficulty="demo_words", max_prompt=40, eval_split="valid"),
        rollout=RolloutConfig(mode="explicit", max_new_tokens=44, latent=LatentConfig(k=1), answer=AnswerConfig(temperature=1.0)),
        sft=SftConfig(batch_size=64, max_chain=36, max_answer=common.MAX_ANSWER, stage="explicit"),
        optim=common.SFT_OPTIM,
        train=TrainConfig(num_steps=600, log_every=10),
        checkpoint=common.CHECKPOINT,
        evaluation=EvaluationConfig(problems=1000, samples=4, batch=250),
    )
