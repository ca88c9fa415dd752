"""One-sided against two-sided noise under each density. `exact` is the density of two-sided, unclamped noise only.

Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid sided_densities --seeds 3 --workdir runs/ablate/sided_densities
Result: docs/study.md. 40 to 160 s of one core a run.
"""

from lgrpo.config.presets import EXACT, NO_ONE_SIDED, PAPER

GRID = {"two_sided-exact": EXACT}
COMMON = PAPER
AXES = {
    "noise": {"one_sided": {}, "two_sided": NO_ONE_SIDED},
    "density": {f"gumbel_{name}": {"rollout.latent.law.density": name} for name in ("mean", "weighted")},
}
BASE = "one_sided-gumbel_mean"
