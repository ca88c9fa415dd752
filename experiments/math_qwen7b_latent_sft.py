"""Latent-SFT of Qwen2.5-Math-7B on long mathematical chains, sixteen chain tokens per latent: the start of math_qwen7b.

No registered data set has such chains (DAPO-Math-17k has answers only), so they come from files: train.jsonl and valid.jsonl in runs/data/math_chains
with `problem`, `cot` and `answer`, for instance made from the authors' Latent-SFT-Data. Set RECORDS to the lines of train.jsonl.
    python -m lgrpo sft experiments/math_qwen7b_latent_sft.py --stage all --workdir runs/math_qwen7b_latent_sft
    python -m lgrpo train experiments/math_qwen7b.py --workdir runs/x --train.init-from runs/math_qwen7b_latent_sft/latent
Start: an explicit model in runs/models/qwen7b_explicit_sft. Numbers of the authors' Latent-SFT release: LoRA of rank 64, batches of 8, 10 epochs of
each phase of stage 1 at 1e-5 and 50 of stage 2 at 2e-5; lengths are our choice. Not run here: it needs accelerators.
"""

from experiments import gsm8k_llama1b_latent_sft as low
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.models.presets import QWEN2_5_MATH_7B

RECORDS = 10_000
BATCH = 8
EPOCHS = {"encoder": 10, "decoder": 10, "union": 10, "latent": 50}
START = "runs/models/qwen7b_explicit_sft"


def get_config(stage: str = "latent") -> ExperimentConfig:
    steps = EPOCHS[stage] * RECORDS // BATCH
    diff = {
        "name": "math_qwen7b_latent_sft",
        "model": QWEN2_5_MATH_7B,
        "data.source": "jsonl",
        "data.path": "runs/data/math_chains",
        "data.tokenizer": f"{START}/hf",
        "data.eos": "<|endoftext|>",
        "data.max_prompt": 1024,
        "rollout.max_new_tokens": 2048,
        "sft.label_path": "runs/math_qwen7b_latent_sft/labels",
        "sft.compression": 16,
        "sft.batch_size": BATCH,
        "sft.max_chain": 8192,
        "sft.max_answer": 1024,
        "sft.heldout": 128,
        "optim.lr": 2e-5 if stage == "latent" else 1e-5,
        "optim.warmup": steps // 20,
        "train.num_steps": steps,
        "train.init_from": START,
        "train.logprob_chunk": 1024,
        "evaluation.every": 1000,
        "evaluation.problems": 128,
        "evaluation.batch": 8,
    }
    return apply_diff(low.get_config(stage), diff)
