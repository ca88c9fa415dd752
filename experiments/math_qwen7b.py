"""Latent-GRPO on DAPO-Math-17k with Qwen2.5-Math-7B: the paper's high-difficulty setting.

Start: a Latent-SFT checkpoint of Qwen2.5-Math-7B with 10 latent candidates, for instance the authors' (huggingface.co/DJCheng):
    python -m lgrpo import-hf SOURCE --workdir runs/models/qwen7b_latent_sft --extra-tokens drop
    python -m lgrpo overlap experiments/math_qwen7b.py --against math500/test aime24/test aime25/test gpqa_diamond/test
    python -m lgrpo train experiments/math_qwen7b.py --workdir runs/math_qwen7b
    python -m lgrpo eval experiments/math_qwen7b.py --workdir runs/math_qwen7b --suite high
32 prompts x 8 samples, 1 update a step, prompts of 1024 and completions of 4096 tokens, KL 0.001, unfinished samples excluded from the group
statistics. Paper: 41.7 pass@1 on average over the suite, 27.0 before RL; its authors report about 500 steps. Not run here: it needs 8
accelerators. train.microbatch is one prompt on each of 8; with another number of devices set it to that.
"""

from lgrpo.config import (
    AlgoConfig,
    AnswerConfig,
    CheckpointConfig,
    DataConfig,
    DynamicSamplingConfig,
    EvaluationConfig,
    ExperimentConfig,
    LatentConfig,
    MeshConfig,
    OptimConfig,
    RolloutConfig,
    TrainConfig,
)
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import PAPER
from lgrpo.models.presets import QWEN2_5_MATH_7B

START = "runs/models/qwen7b_latent_sft"
EVAL_ANSWER = AnswerConfig(temperature=0.6, top_p=0.95, top_k=30)  # of the authors' evaluation scripts


def get_config() -> ExperimentConfig:
    cfg = ExperimentConfig(
        name="math_qwen7b",
        model=QWEN2_5_MATH_7B,
        data=DataConfig(
            source="dapo_math_17k",
            eval_split="math500/test",
            tokenizer=f"{START}/hf",
            template="chat",
            eos="<|endoftext|>",
            max_prompt=1024,
        ),
        rollout=RolloutConfig(group_size=8, max_new_tokens=4096, latent=LatentConfig(k=10)),
        algo=AlgoConfig(
            clip_low=0.2, clip_high=0.2, dual_clip=3.0, kl_coef=0.001, dynamic=DynamicSamplingConfig(enabled=True, max_rounds=50)
        ),
        optim=OptimConfig(lr=1e-6, schedule="constant", b1=0.9, b2=0.999, weight_decay=0.01, clip_norm=1.0),
        mesh=MeshConfig(data=1, fsdp=-1),
        train=TrainConfig(num_steps=500, prompts_per_step=32, updates_per_step=1, microbatch=8, init_from=START),
        checkpoint=CheckpointConfig(every=40),
        evaluation=EvaluationConfig(answer=EVAL_ANSWER, train_answer=False, every=40, problems=0, samples=1, batch=64),
    )
    return apply_diff(cfg, PAPER | {"algo.invalid": "exclude"})
