"""The gradient of the score under one-sided noise, everything else as in the paper.

Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid score_gradients --seeds 3 --workdir runs/ablate/score_gradients
Result: docs/study.md. 40 to 160 s of one core a run.
"""

from lgrpo.config.presets import PAPER

COMMON = PAPER
GRID = {name: {"rollout.latent.law.score_gradient": name} for name in ("aligned", "bounded", "plain")}
BASE = "aligned"
