"""Presets at several learning rates: none is judged by a rate that suits another.

Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid learning_rates --seeds 3 --workdir runs/ablate/learning_rates
Result: docs/study.md. 40 to 160 s of one core a run.
"""

from lgrpo.config.presets import EXACT, NAIVE_LATENT, PAPER

AXES = {
    "method": {
        "paper": PAPER,
        "weighted": PAPER | {"rollout.latent.law.density": "weighted"},
        "exact": EXACT,
        "naive": NAIVE_LATENT,
    },
    "rate": {f"{rate:.0e}": {"optim.lr": rate} for rate in (3e-5, 1e-4, 3e-4)},
}
BASE = "paper-1e-04"
