"""Latent-SFT of Llama-3.2-1B-Instruct on GSM8K-Aug, two chain tokens per latent: the start of gsm8k_llama1b, from an explicit model.

    python -m lgrpo import-hf meta-llama/Llama-3.2-1B-Instruct --workdir runs/models/llama1b
    python -m lgrpo sft experiments/gsm8k_llama1b_explicit_sft.py --workdir runs/models/llama1b_explicit_sft
    python -m lgrpo sft experiments/gsm8k_llama1b_latent_sft.py --stage all --workdir runs/gsm8k_llama1b_latent_sft
    python -m lgrpo train experiments/gsm8k_llama1b.py --workdir runs/x --train.init-from runs/gsm8k_llama1b_latent_sft/latent \
        --data.tokenizer runs/models/llama1b/hf
Numbers of the authors' Latent-SFT release: LoRA of rank 64, batches of 64, 10 epochs of each phase of stage 1 at 1e-4 and 70 of stage 2 at 3e-4, label noise
clamped to [-1.5, 3]. Stage 2 stops by itself once the held-out accuracy has not risen for five evaluations. Not run here: it needs accelerators.
"""

from lgrpo.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LatentConfig,
    LoraConfig,
    MeshConfig,
    OptimConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
)
from lgrpo.data.registry import DATA_SETS
from lgrpo.models.presets import LLAMA_3_2_1B

START = "runs/models/llama1b_explicit_sft"
TOKENIZER = "runs/models/llama1b/hf"
EPOCHS = {"encoder": 10, "decoder": 10, "union": 10, "latent": 70}
BATCH = 64
DATA = DataConfig(
    source="gsm8k_aug", tokenizer=TOKENIZER, template="chat", eos="<|eot_id|>", think_end="</think>", max_prompt=192, eval_split="valid"
)


def get_config(stage: str = "latent") -> ExperimentConfig:
    steps = EPOCHS[stage] * DATA_SETS["gsm8k_aug"].splits["train"].rows // BATCH
    return ExperimentConfig(
        name="gsm8k_llama1b_latent_sft",
        model=LLAMA_3_2_1B,
        data=DATA,
        rollout=RolloutConfig(max_new_tokens=128, latent=LatentConfig(k=10)),
        sft=SftConfig(
            stage=stage,
            labels="encoder",
            label_path="runs/gsm8k_llama1b_latent_sft/labels",  # --stage all puts its own here
            compression=2,
            label_noise=1.0,
            lora=LoraConfig(rank=64, alpha=128.0, dropout=0.1),
            batch_size=BATCH,
            max_chain=160,
            max_answer=16,
            heldout=448,
            patience=5,
        ),
        optim=OptimConfig(  # one table in this model; labels are mixtures of its rows
            lr=3e-4 if stage == "latent" else 1e-4,
            schedule="cosine",
            warmup=steps // 20,
            weight_decay=0.01,
            freeze_embed=True,
            freeze_unembed=True,
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
        train=TrainConfig(num_steps=steps, init_from=START),
        checkpoint=CheckpointConfig(every=500, keep_best=True),
        evaluation=EvaluationConfig(every=2000, problems=448, samples=1, batch=64),
    )
