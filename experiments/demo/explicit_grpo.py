"""Demo, stage 4: explicit chain-of-thought GRPO from the explicit start, with the RL budget of stage 3 (same steps, prompts and samples).

Run: python -m lgrpo train experiments/demo/explicit_grpo.py --workdir runs/demo/explicit_grpo
Measured in docs/demo.md: pass@1 0.899, sampled 0.880, after 8.4e12 FLOP.
"""

from experiments.demo import latent_grpo
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXPLICIT


def get_config() -> ExperimentConfig:
    longer = {"name": "explicit_grpo", "rollout.max_new_tokens": 36, "train.init_from": "runs/demo/explicit_sft"}
    return apply_diff(latent_grpo.get_config(), EXPLICIT | longer)
