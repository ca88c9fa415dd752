"""One-sided against two-sided noise under each density. `exact` is the density of two-sided, unclamped noise only.

Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid sided_densities --seeds 3 --workdir runs/ablate/sided_densities
"""

from lgrpo.config.presets import EXACT, NO_ONE_SIDED, PAPER

GRID = {"two_sided-exact": EXACT}
COMMON = {path: value for path, value in PAPER.items() if path not in NO_ONE_SIDED and path != "rollout.latent.density"}
AXES = {
    "noise": {"one_sided": {path: PAPER[path] for path in NO_ONE_SIDED}, "two_sided": NO_ONE_SIDED},
    "density": {name: {"rollout.latent.density": name} for name in ("gumbel_mean", "gumbel_weighted")},
}
BASE = "one_sided-gumbel_mean"
