"""One importance ratio for a whole completion (GSPO, arXiv 2507.18071), with that paper's clips and its mean over completions. Ratios differ from 1 from the
second update of a step on, so there are four.

Run: python -m lgrpo train experiments/ablations/gspo.py --workdir runs/ablations/gspo
Not run at length.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff

DIFF = {
    "name": "gspo",
    "algo.ratio": "sequence",
    "algo.loss_mean": "sequence",
    "algo.clip_low": 3e-4,
    "algo.clip_high": 4e-4,
    "train.updates_per_step": 4,
}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
