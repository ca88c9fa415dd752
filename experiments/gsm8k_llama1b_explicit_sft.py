"""Explicit SFT of Llama-3.2-1B-Instruct on the equation chains of GSM8K-Aug: the start of gsm8k_llama1b_explicit and of Latent-SFT.

    python -m lgrpo import-hf meta-llama/Llama-3.2-1B-Instruct --workdir runs/models/llama1b
    python -m lgrpo sft experiments/gsm8k_llama1b_explicit_sft.py --workdir runs/models/llama1b_explicit_sft
Nothing is published about this stage: three epochs at 1e-5 are our choice. Not run here: it needs accelerators.
"""

from experiments import gsm8k_llama1b_latent_sft as latent
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.data.registry import DATA_SETS

STEPS = 3 * DATA_SETS["gsm8k_aug"].splits["train"].rows // latent.BATCH
DIFF = {
    "name": "gsm8k_llama1b_explicit_sft",
    "rollout.mode": "explicit",
    "rollout.max_new_tokens": 256,
    "sft.stage": "explicit",
    "sft.labels": "superposition",
    "sft.label_path": "",
    "sft.lora.rank": 0,
    "sft.lora.dropout": 0.0,
    "sft.patience": 0,
    "optim.lr": 1e-5,
    "optim.warmup": STEPS // 20,
    "train.num_steps": STEPS,
    "train.init_from": "runs/models/llama1b",
}


def get_config() -> ExperimentConfig:
    return apply_diff(latent.get_config(), DIFF)
