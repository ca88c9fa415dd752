"""Baseline of gsm8k_llama1b: chain-of-thought GRPO from an explicit start, with the same prompts, samples and updates.

Chains are longer than latents (94 tokens on average in the paper), so completions get 256 tokens: the paper's limit is not published.
Start: Llama-3.2-1B-Instruct after explicit SFT on chains between <think> and </think>, imported to runs/models/llama1b_explicit_sft.
Run: python -m lgrpo train experiments/gsm8k_llama1b_explicit.py --workdir runs/gsm8k_llama1b_explicit
Not run here: it needs accelerators.
"""

from experiments import gsm8k_llama1b as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXPLICIT

START = "runs/models/llama1b_explicit_sft"
DIFF = EXPLICIT | {
    "name": "gsm8k_llama1b_explicit",
    "rollout.max_new_tokens": 256,
    "train.init_from": START,
    "data.tokenizer": f"{START}/hf",
}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
