"""The two stabilizers that the exact density leaves room for, on and off: masking of invalid samples and first-token selection.

Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid exact_stabilizers --seeds 3 --workdir runs/ablate/exact_stabilizers
Result: docs/study.md. 40 to 160 s of one core a run.
"""

from lgrpo.config.presets import EXACT, NO_FIRST_TOKEN, NO_INVALID_MASKING

COMMON = EXACT
AXES = {
    "invalid": {"mask": {"algo.invalid": "zero"}, "keep": NO_INVALID_MASKING},
    "first_token": {"winner": {"algo.first_token": True}, "everyone": NO_FIRST_TOKEN},
}
BASE = "mask-winner"
