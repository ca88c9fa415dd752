"""Baseline of math_qwen7b: chain-of-thought GRPO from an explicit start, with the same prompts, samples and updates.

Chains are longer than latents (5466 tokens on average in the paper), so completions get 8192 tokens: the paper's limit is not published.
Start: Qwen2.5-Math-7B after explicit SFT on chains between <think> and </think>, imported to runs/models/qwen7b_explicit_sft.
Run: python -m lgrpo train experiments/math_qwen7b_explicit.py --workdir runs/math_qwen7b_explicit
Not run here: it needs accelerators.
"""

from experiments import math_qwen7b as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXPLICIT

START = "runs/models/qwen7b_explicit_sft"
DIFF = EXPLICIT | {
    "name": "math_qwen7b_explicit",
    "algo.invalid": "exclude",
    "rollout.max_new_tokens": 8192,
    "train.init_from": START,
    "data.tokenizer": f"{START}/hf",
}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
