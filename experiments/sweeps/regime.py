"""What the paper's regime differs in, one setting at a time, for the exact density and for GRPO without stabilizers: peakedness of the mixtures, K,
learning rate, updates per batch.

Peakedness is varied where RL sees it, by the temperature of the mixtures and the scale of the noise. Another vocabulary, or labels of another
peakedness, needs starts of its own: python -m experiments.study --start-set.
Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid regime --seeds 3 --workdir runs/ablate/regime
Result: docs/study.md. 40 to 160 s of one core a run.
"""

from lgrpo.config.presets import EXACT, NAIVE_LATENT

SETTINGS = {"base": {}}
SETTINGS |= {f"tau_{value}": {"rollout.latent.tau": value} for value in (0.5, 2.0)}
SETTINGS |= {f"noise_{value}": {"rollout.latent.noise_scale": value} for value in (0.5, 2.0)}
SETTINGS |= {f"k_{value}": {"rollout.latent.k": value} for value in (2, 4, 16)}
SETTINGS |= {f"lr_{value}": {"optim.lr": value} for value in (1e-4, 1e-3)}
SETTINGS |= {f"updates_{value}": {"train.updates_per_step": value} for value in (2, 4)}
METHODS = {"exact": EXACT, "naive": NAIVE_LATENT}
GRID = {f"{method}-{name}": preset | change for method, preset in METHODS.items() for name, change in SETTINGS.items()}
BASE = "exact-base"
