"""Candidates for Latent-SFT, each trained from the study's explicit model and evaluated on `valid`: how its compression and K were chosen.

Run: python -m experiments.smollm2.choose --workdir runs/smollm2/cpu [--compression 2 3] [--k 2 4 8] [--steps 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import pathlib
import sys

from experiments.demo.__main__ import exit_code, finish_stage, table
from experiments.smollm2.results import CHOICE
from experiments.smollm2.stages import BUDGETS, LONGEST, ROOM, K, latents, stage_config
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.errors import UserError
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.train import sft


def candidate(folder: pathlib.Path, compression: int, k: int, steps: int, seed: int = 0) -> ExperimentConfig:
    """Latent-SFT with so many chain tokens a latent and so many tokens in its mixture, evaluated on `valid`. folder: of the study, with the
    seed's explicit_sft finished."""
    others = ("" if k == K else f"_k{k}") + (f"_seed{seed}" if seed else "")
    changes = {
        "name": f"compression{compression}_updates{steps}{others}",
        "sft.compression": compression,
        "rollout.latent.k": k,
        "rollout.max_new_tokens": latents(LONGEST, compression) + ROOM,
        "data.eval_split": "valid",
    }
    return apply_diff(stage_config("latent_sft", folder, dataclasses.replace(BUDGETS[folder.name], latent_steps=steps), seed), changes)


def run(options: argparse.Namespace) -> int:
    """The exit code, 75 when interrupted. Errors: UserError."""
    folder: pathlib.Path = options.workdir
    if folder.name not in BUDGETS or not (folder / f"seed{options.seed}" / "explicit_sft" / "stage.json").exists():
        raise UserError(
            f"--workdir {folder}: no finished explicit_sft of a budget there with seed {options.seed}; first run python -m experiments.smollm2"
        )
    results = {}
    for compression, k in itertools.product(options.compression, options.k):
        cfg = candidate(folder, compression, k, options.steps, options.seed)
        results[cfg.name] = finish_stage(cfg, folder / CHOICE / cfg.name, sft.run)
        if results[cfg.name] is None:
            return EXIT_PREEMPTED
    print(table(results))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.smollm2.choose", description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of the study: <workdir>/<budget>")
    parser.add_argument("--compression", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--k", type=int, nargs="+", default=[K], help="tokens in a mixture")
    parser.add_argument("--seed", type=int, default=0, help="of the explicit model")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
