"""The study on the embedded task: the demo's two supervised stages once per seed, then grids from those starts, one table and one report each.

Writes <workdir>/starts/seedS/{explicit_sft,latent_sft}, <workdir>/<grid>/ablation.{md,csv,json} and <workdir>/<grid>.html. Interrupted and
started again, it goes on where it was; finished grids cost nothing. Exit codes as those of `python -m lgrpo ablate`.
Starts made with --start-set (another vocabulary, other labels) have folders of their own: <workdir>/starts_<suffix> and <workdir>/<grid>_<suffix>.

Run: python -m experiments.study --workdir runs/study [--grids presets sided_densities] [--seeds 3] [--steps 400] [--set optim.lr=1e-4] [--jobs 2]
     python -m experiments.study --grids learning_rates --start-set model.vocab_size=4096 --suffix vocab4096
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import subprocess
import sys
import time
from typing import Any

from experiments.demo.__main__ import STAGES, exit_code, finish_stage, stage_config
from lgrpo.ablate.grid import parse_seeds, parse_set
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.errors import UserError
from lgrpo.report.build import write_report
from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag

BASE = pathlib.Path(__file__).parents[1] / "demo" / "latent_grpo.py"
STARTS = ("explicit_sft", "latent_sft")
GRIDS = ("presets", "sided_densities")


def start_config(name: str, folder: pathlib.Path, seed: int, options: argparse.Namespace) -> ExperimentConfig:
    """A supervised stage of the demo, shorter or evaluated on less where that was asked for."""
    cfg = stage_config(name, folder, seed)
    changes: dict[str, Any] = {
        "data.train_split": "train"
    }  # all demonstrations: a start near its ceiling, as the numbers of docs/study.md are
    if options.sft_steps:
        changes["train.num_steps"] = options.sft_steps
        changes["optim.warmup"] = min(cfg.optim.warmup, options.sft_steps // 4)
    return apply_diff(cfg, changes | evaluation(options, cfg) | parse_set(options.start_set))


def starts_folder(options: argparse.Namespace) -> pathlib.Path:
    """Where the starts go: plain ones are shared by all grids."""
    return options.workdir / (f"starts_{options.suffix}" if options.start_set else "starts")


def evaluation(options: argparse.Namespace, cfg: ExperimentConfig) -> dict[str, int]:
    if not options.problems:
        return {}
    return {"evaluation.problems": options.problems, "evaluation.batch": min(options.problems, cfg.evaluation.batch)}


def make_starts(options: argparse.Namespace, seeds: list[int]) -> bool:
    """False when a signal stopped it."""
    for seed in seeds:
        folder = starts_folder(options) / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in STARTS:
            cfg = start_config(name, folder, seed, options)
            cfg = dataclasses.replace(cfg, name=f"{name}, seed {seed}")
            if finish_stage(cfg, folder / name, STAGES[name][1]) is None:
                return False
    return True


def grid_folder(options: argparse.Namespace, grid: str) -> pathlib.Path:
    """Where a grid's runs and table go."""
    return options.workdir / (pathlib.Path(grid).stem + (f"_{options.suffix}" if options.suffix else ""))


def ablate(options: argparse.Namespace, grid: str) -> int:
    """The grid's runs, as `python -m lgrpo ablate` makes them."""
    settings = {"train.num_steps": options.steps, "train.init_from": starts_folder(options) / "seed{seed}" / "latent_sft"}
    # The cells' model must be that of their starts.
    settings |= {path: value for path, value in parse_set(options.start_set).items() if path.startswith("model.")}
    settings |= evaluation(options, stage_config("latent_grpo", options.workdir, 0))
    command = [sys.executable, "-m", "lgrpo", "ablate", str(BASE), "--grid", grid, "--seeds", options.seeds]
    command += ["--workdir", str(grid_folder(options, grid)), "--jobs", str(options.jobs)]
    command += ["--set", *(f"{path}={value}" for path, value in settings.items() if value), *options.set]
    command += ["--hosts", options.hosts] if options.hosts else []
    command += ["--cells", options.cells] if options.cells else []
    # In a session of its own, so that Ctrl-C reaches it once, through us.
    with StopFlag() as stop, subprocess.Popen(command, start_new_session=True) as process:
        told = False
        try:
            while process.poll() is None:
                if stop and not told:
                    told = True
                    process.terminate()
                time.sleep(0.2)
        except BaseException:  # a second signal: not to be waited for
            process.terminate()
            raise
    return process.returncode


def run(options: argparse.Namespace) -> int:
    """Starts, grids, reports. The worst exit code: 75 before 1. Errors: UserError."""
    if options.start_set and not options.suffix:
        raise UserError("--start-set: give --suffix too, the name of these starts, e.g. --suffix vocab4096")
    if not make_starts(options, parse_seeds(options.seeds)):
        return EXIT_PREEMPTED
    worst = 0
    for grid in options.grids:
        code = ablate(options, grid)
        if code not in (0, 1):
            return code
        worst = max(worst, code)
        folder = grid_folder(options, grid)
        print(f"report: {write_report([folder], options.workdir / f'{folder.name}.html', title=f'study: {folder.name}')}")
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.study", description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/study"))
    parser.add_argument("--grids", nargs="*", default=GRIDS, help="names in experiments/sweeps, or files; none: the starts only")
    parser.add_argument("--seeds", default="3", help="how many, or which (0,4)")
    parser.add_argument("--cells", default="", help="only these cells of the grids, and the base")
    parser.add_argument("--steps", type=int, default=0, help="RL steps of every cell; default: the demo's")
    parser.add_argument("--sft-steps", type=int, default=0, help="steps of each supervised stage; default: the demo's")
    parser.add_argument("--problems", type=int, default=0, help="problems of every evaluation; default: the demo's")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="settings of the base, before the cells' own")
    text = "settings of the supervised stages; those of the model go to the cells as well. Needs --suffix"
    parser.add_argument("--start-set", nargs="+", default=[], metavar="FIELD=VALUE", help=text)
    parser.add_argument("--suffix", default="", help="added to the grids' folders: the same grid with another --set or --start-set")
    parser.add_argument("--jobs", type=int, default=0, help="runs at once; default: as many as cores")
    parser.add_argument("--hosts", default="", help="machines, see python -m lgrpo ablate --help")
    options = parser.parse_args()
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
