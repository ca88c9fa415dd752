"""The method's presets and the baselines. `explicit` starts from explicit_sft beside the base's start and has room for its longer chains.

Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid presets --seeds 3 --workdir runs/ablate/presets
Result: docs/study.md. 40 to 160 s of one core a run.
"""

from lgrpo.config.presets import EXACT, EXPLICIT, GAUSSIAN, NAIVE_LATENT, OFFICIAL, PAPER, SOFT_GRPO

GRID = {
    "paper": PAPER,
    "official": OFFICIAL,
    "exact": EXACT,
    "naive_latent": NAIVE_LATENT,
    "soft_grpo": SOFT_GRPO,
    "gaussian": GAUSSIAN,
    "explicit": EXPLICIT | {"rollout.max_new_tokens": 36, "train.init_from": "{init_from}/../explicit_sft"},
}
BASE = "paper"
