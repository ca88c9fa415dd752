"""math_qwen7b at toy size, on a CPU in under two minutes: the same method and data format, a tiny random qwen2 model, files of experiments/smoke.

Run: python -m lgrpo train experiments/math_qwen7b_smoke.py --workdir runs/math_qwen7b_smoke
Result: none, its weights are random.
"""

from experiments import math_qwen7b as base
from experiments.smoke.common import smoke
from lgrpo.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return smoke(base.get_config(), "qwen2", "<|im_end|>")
