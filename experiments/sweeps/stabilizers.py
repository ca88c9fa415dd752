"""The three stabilizers of the paper's method, each on and off: 2 x 2 x 2 cells. The last cell is naive latent GRPO.

Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid stabilizers --seeds 3 --workdir runs/ablate/stabilizers
Result: docs/study.md. 40 to 160 s of one core a run.
"""

from lgrpo.config.presets import NO_FIRST_TOKEN, NO_INVALID_MASKING, NO_ONE_SIDED, PAPER

COMMON = {path: value for path, value in PAPER.items() if path not in NO_FIRST_TOKEN | NO_INVALID_MASKING}


def _of_paper(diff):
    return {path: PAPER[path] for path in diff}


AXES = {
    "invalid samples": {"masked": _of_paper(NO_INVALID_MASKING), "unmasked": NO_INVALID_MASKING},
    "noise": {"one_sided": {}, "two_sided": NO_ONE_SIDED},
    "first token": {"winner": _of_paper(NO_FIRST_TOKEN), "everyone": NO_FIRST_TOKEN},
}
BASE = "masked-one_sided-winner"
