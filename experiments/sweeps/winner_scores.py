"""First-token selection with each winner score, with invalid winners allowed, and without selection.

Everything else as in the paper but the density: under the paper's own nothing is learnt on the demo's task, with or without selection
(docs/study.md).
Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid winner_scores --seeds 3 --workdir runs/ablate/winner_scores
Result: docs/study.md. 40 to 160 s of one core a run.
"""

from lgrpo.config.presets import NO_FIRST_TOKEN, PAPER

COMMON = PAPER | {"rollout.latent.law.density": "weighted"}
GRID = {name: {"algo.winner_score": name} for name in ("response_mean", "latent_mean", "answer_mean")}
GRID |= {"any_winner": {"algo.winner_must_be_valid": False}, "no_selection": NO_FIRST_TOKEN}
BASE = "response_mean"
