"""An ablation: the difference to its base and nothing else.

Run: lgrpo train with_first_token.py --workdir runs/with_first_token
"""

import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff

DIFF = {"name": "with_first_token", "algo.first_token": True}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
