"""Ablation modules on the demo's latent starts, seed by seed, and one table.

Needs the starts of `make demo-seeds`. Run: python -m experiments.demo.presets --workdir runs/demo-seeds [--seeds 0 1 2] [--names paper exact]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys

from experiments.demo.__main__ import finish_stage, table
from lgrpo.config.overrides import load_experiment
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.train import rl

NAMES = ("paper", "gumbel_weighted", "naive_latent", "no_one_sided")
FOLDER = pathlib.Path(__file__).parents[1] / "ablations"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo.presets", description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/demo-seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--names", nargs="+", default=NAMES)
    args = parser.parse_args()
    rows = {}
    for seed in args.seeds:
        start = args.workdir / f"seed{seed}" / "latent_sft"
        rows[f"start, seed {seed}"] = json.loads((start / "stage.json").read_text())["result"]
        for name in args.names:
            cfg = load_experiment(FOLDER / f"{name}.py")
            cfg = dataclasses.replace(cfg, seed=seed, train=dataclasses.replace(cfg.train, init_from=str(start)))
            result = finish_stage(cfg, args.workdir / f"seed{seed}" / f"ablation_{name}", rl.run)
            if result is None:
                return EXIT_PREEMPTED
            rows[f"{name}, seed {seed}"] = result
    print("\n" + table(dict(sorted(rows.items()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
