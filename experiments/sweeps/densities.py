"""The density of a latent step, everything else as in the paper; `exact` brings the unclamped noise that it needs.

Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid densities --seeds 3 --workdir runs/ablate/densities
Not run as a grid.
"""

from lgrpo.config.presets import EXACT, PAPER

GRID = {
    "gumbel_mean": PAPER,
    "gumbel_mean_unit": PAPER | {"rollout.latent.law.density_scale": "unit", "rollout.latent.noise_scale": 0.5},
    "gumbel_mean_half_noise": PAPER | {"rollout.latent.noise_scale": 0.5},
    "gumbel_weighted": PAPER | {"rollout.latent.law.density": "weighted"},
    "gumbel_sum": PAPER | {"rollout.latent.law.density": "sum"},
    "exact": EXACT,
}
BASE = "gumbel_mean"
