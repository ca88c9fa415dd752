"""What a reward is compared with, in which units, and what is clipped: GRPO, Dr. GRPO, RLOO and GSPO, each with four updates a step.

Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid advantages --seeds 3 --workdir runs/ablate/advantages
Not run as a grid.
"""

COMMON = {"train.updates_per_step": 4}
GRID = {
    "grpo": {},
    "sequence_mean": {"algo.loss_mean": "sequence"},
    "dr_grpo": {"algo.scale": "none"},
    "rloo": {"algo.baseline": "leave_one_out", "algo.scale": "none"},
    "gspo": {"algo.ratio": "sequence", "algo.loss_mean": "sequence", "algo.clip_low": 3e-4, "algo.clip_high": 4e-4},
}
BASE = "grpo"
