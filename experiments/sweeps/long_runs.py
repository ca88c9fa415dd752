"""Methods that rise in a short run, at the demo's rate, for its 400 steps: does one of them fall later?

Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid long_runs --seeds 3 --workdir runs/ablate/long_runs
Result: docs/study.md. 40 to 160 s of one core a run.
"""

from lgrpo.config.presets import EXACT, NAIVE_LATENT, PAPER

GRID = {
    "exact": EXACT,
    "weighted": PAPER | {"rollout.latent.law.density": "weighted"},
    "naive": NAIVE_LATENT,
}
BASE = "exact"
