"""Candidates for Latent-SFT, each trained from the study's explicit model and evaluated on `valid`: how its compression was chosen.

Run: python -m experiments.smollm2.choose --workdir runs/smollm2/cpu [--compression 2 3] [--steps 200]
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

from experiments.demo.__main__ import exit_code, finish_stage, table
from experiments.smollm2.results import CHOICE
from experiments.smollm2.stages import BUDGETS, LONGEST, ROOM, latents, stage_config
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.errors import UserError
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.train import sft


def candidate(folder: pathlib.Path, compression: int, steps: int) -> ExperimentConfig:
    """Latent-SFT of seed 0 with so many chain tokens a latent, evaluated on `valid`. folder: of the study, with explicit_sft finished."""
    changes = {
        "name": f"compression{compression}_updates{steps}",
        "sft.compression": compression,
        "rollout.max_new_tokens": latents(LONGEST, compression) + ROOM,
        "data.eval_split": "valid",
    }
    return apply_diff(stage_config("latent_sft", folder, dataclasses.replace(BUDGETS[folder.name], latent_steps=steps), 0), changes)


def run(options: argparse.Namespace) -> int:
    """The exit code, 75 when interrupted. Errors: UserError."""
    folder: pathlib.Path = options.workdir
    if folder.name not in BUDGETS or not (folder / "seed0" / "explicit_sft" / "stage.json").exists():
        raise UserError(f"--workdir {folder}: no finished explicit_sft of a budget there; first run python -m experiments.smollm2")
    results = {}
    for compression in options.compression:
        cfg = candidate(folder, compression, options.steps)
        results[cfg.name] = finish_stage(cfg, folder / CHOICE / cfg.name, sft.run)
        if results[cfg.name] is None:
            return EXIT_PREEMPTED
    print(table(results))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.smollm2.choose", description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of the study: <workdir>/<budget>")
    parser.add_argument("--compression", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
