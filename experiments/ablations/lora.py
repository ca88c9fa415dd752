"""The paper's method on adapters of rank 64 in place of the weights: the frozen base has no gradient and no moments, and is itself the start that a KL
is taken to. Adapters want a larger rate than weights do: sweep optim.lr before comparing.

Run: python -m lgrpo train experiments/ablations/lora.py --workdir runs/ablations/lora
Not run at length.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import PAPER

DIFF = PAPER | {"name": "lora", "algo.lora.rank": 64, "algo.lora.alpha": 128.0}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
