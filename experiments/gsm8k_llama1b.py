"""Latent-GRPO on GSM8K-Aug with Llama-3.2-1B: the paper's low-difficulty setting.

Start: a Latent-SFT checkpoint of Llama-3.2-1B-Instruct with 10 latent candidates, for instance the authors' (huggingface.co/DJCheng):
    python -m lgrpo import-hf SOURCE --workdir runs/models/llama1b_latent_sft --extra-tokens drop
    python -m lgrpo overlap experiments/gsm8k_llama1b.py --against test gsm_hard/test svamp/test multiarith/test
    python -m lgrpo train experiments/gsm8k_llama1b.py --workdir runs/gsm8k_llama1b
    python -m lgrpo eval experiments/gsm8k_llama1b.py --workdir runs/gsm8k_llama1b --suite low
64 prompts x 8 samples, 4 updates a step, prompts of 192 and completions of 128 tokens. The paper does not publish its number of steps; its
authors report stable training up to about 10 000. Paper: 58.3 pass@1 on average over the suite, 50.5 before RL. Not run here: it needs 8
accelerators.
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
from lgrpo.models.presets import LLAMA_3_2_1B

START = "runs/models/llama1b_latent_sft"
EVAL_ANSWER = AnswerConfig(temperature=0.6, top_p=0.95, top_k=30)  # of the authors' evaluation scripts


def get_config() -> ExperimentConfig:
    cfg = ExperimentConfig(
        name="gsm8k_llama1b",
        model=LLAMA_3_2_1B,
        data=DataConfig(source="gsm8k_aug", tokenizer=f"{START}/hf", template="chat", eos="<|eot_id|>", max_prompt=192),
        rollout=RolloutConfig(group_size=8, max_new_tokens=128, latent=LatentConfig(k=10)),
        algo=AlgoConfig(clip_low=0.2, clip_high=0.2, dual_clip=3.0, dynamic=DynamicSamplingConfig(enabled=True, max_rounds=50)),
        optim=OptimConfig(lr=1e-6, schedule="constant", b1=0.9, b2=0.999, weight_decay=0.01, clip_norm=1.0),
        mesh=MeshConfig(data=1, fsdp=-1),
        train=TrainConfig(num_steps=10_000, prompts_per_step=64, updates_per_step=4, init_from=START),
        checkpoint=CheckpointConfig(every=40),
        evaluation=EvaluationConfig(answer=EVAL_ANSWER, train_answer=False, every=40, problems=512, samples=1, batch=128),
    )
    return apply_diff(cfg, PAPER)
