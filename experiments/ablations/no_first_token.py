"""The paper's method without stabilizer 3: every correct sample keeps its first-token advantage.

Run: python -m lgrpo train experiments/ablations/no_first_token.py --workdir runs/ablations/no_first_token
Measured over five seeds, 100 steps at 1e-4 from the starts of docs/study.md: noise-free 0.782, sampled 0.527. 40 to 160 s of one core a run.
"""

from experiments.demo import latent_grpo as base
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import NO_FIRST_TOKEN, PAPER

DIFF = PAPER | NO_FIRST_TOKEN | {"name": "no_first_token"}


def get_config() -> ExperimentConfig:
    return apply_diff(base.get_config(), DIFF)
