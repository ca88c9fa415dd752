"""gsm8k_llama1b at toy size, on a CPU in under two minutes: the same method and data format, a tiny random llama model, files of experiments/smoke.

Run: python -m lgrpo train experiments/gsm8k_llama1b_smoke.py --workdir runs/gsm8k_llama1b_smoke
Result: none, its weights are random.
"""

from experiments import gsm8k_llama1b as base
from experiments.smoke.common import smoke
from lgrpo.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return smoke(base.get_config(), "llama", "<|eot_id|>")
