"""The study: weights, problems, supervised stages, RL by every method, evaluations, a report. Interrupted anywhere and started again, it goes on.

Run: python -m experiments.smollm2 --budget smoke | cpu | gpu [--workdir runs/smollm2] [--seeds 0 1 2] [--stages exact explicit_grpo]
     [--dtype auto] [--transfer DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

from experiments.demo.__main__ import exit_code, finish_stage, table, write_json
from experiments.smollm2 import results as results_of
from experiments.smollm2 import stages
from experiments.smollm2.stages import BUDGETS, STAGES, Budget, data_settings, origins, stage_config
from experiments.smollm2.weights import fetch
from lgrpo.config import ExperimentConfig
from lgrpo.data import gym
from lgrpo.errors import UserError
from lgrpo.evaluation import evaluate
from lgrpo.report.build import write_report
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.runs.metrics import read_metrics
from lgrpo.train import rl, sft

LOOPS = {"sft": sft.run, "train": rl.run}
COSTS = tuple(results_of.COSTS.values())


def evaluated(cfg: ExperimentConfig, folder: pathlib.Path, transfer_from: str) -> dict[str, Any] | None:
    """What is measured of a trained stage beside its own evaluation, to which the arms are added; None when a signal stopped it.

    {"arms", "curve", "held_out": {pass: accuracy}, "transfer": {name: accuracy, noise-free}}. Whatever is there is not made again.
    """
    wanted = stages.with_arms(cfg)
    main = folder / "eval" / "eval.json"
    if set(_read(main).get("curve", {})) != set(map(str, wanted.evaluation.curve)) and evaluate.run(wanted, folder) == EXIT_PREEMPTED:
        return None
    others = folder / "held_out" / "eval.json"
    if not others.exists() and evaluate.run(stages.held_out(cfg), folder, out="held_out") == EXIT_PREEMPTED:
        return None
    if transfer_from and not (folder / "transfer" / "suite.json").exists():
        moved = stages.transfer(cfg, transfer_from)
        if evaluate.run(moved, folder, suite=stages.TRANSFER, out="transfer") == EXIT_PREEMPTED:
            return None
    found = {name: _read(folder / "transfer" / name / "eval.json") for name in stages.TRANSFER}
    return {part: _read(main)[part] for part in ("arms", "curve")} | {
        "held_out": {kind: _read(others)[kind]["pass@1"] for kind in ("noise_free", "sampled")},
        "transfer": {name: result["noise_free"]["pass@1"] for name, result in found.items() if result},
    }


def start_evaluated(name: str, folder: pathlib.Path, budget: Budget, seed: int) -> bool:
    """Evaluates the start of an RL stage under the stage's sampler, where it has another. Whether it is there now; a signal stops it."""
    out, start = stages.compared_as(name), folder / f"seed{seed}" / STAGES[name][1]
    if not out or (start / out / "eval.json").exists():
        return True
    return evaluate.run(stages.start_as(name, folder, budget, seed), start, out=out) != EXIT_PREEMPTED


def _read(file: pathlib.Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    return json.loads(file.read_text()) if file.exists() else {}


def costs(name: str, results: dict[str, Any]) -> dict[str, float]:
    """FLOP and seconds of a stage together with those of the stages that it started from."""
    return {cost: sum(results[at]["own"].get(cost, 0.0) for at in origins(name)) for cost in COSTS}


def run_seed(folder: pathlib.Path, budget: Budget, seed: int, names: list[str], transfer_from: str = "") -> dict[str, Any] | None:
    """All stages of a seed: name -> result. None when a signal stopped it; results.json has what was finished."""
    results: dict[str, Any] = {}
    runs = folder / f"seed{seed}"
    runs.mkdir(parents=True, exist_ok=True)
    for name in names:
        cfg = stage_config(name, folder, budget, seed)
        result = finish_stage(cfg, runs / name, LOOPS[STAGES[name][0]])
        others = None if result is None else evaluated(cfg, runs / name, transfer_from)
        if result is None or others is None or not start_evaluated(name, folder, budget, seed):
            return None
        last = read_metrics(runs / name)[-1]
        results[name] = result | {"own": {cost: last[cost] for cost in COSTS if cost in last}}
        results[name] |= others | {"with_start": costs(name, results)}
        write_json(runs / "results.json", _read(runs / "results.json") | results)
    return results


def with_starts(names: list[str]) -> list[str]:
    """The stages asked for and those that they start from, in the order of STAGES."""
    wanted = {at for name in names for at in origins(name)}
    return [name for name in STAGES if name in wanted]


def run(options: argparse.Namespace) -> int:
    """The exit code, 75 when interrupted. Errors: UserError."""
    budget, folder = BUDGETS[options.budget], options.workdir / options.budget
    budget = dataclasses.replace(budget, dtype=options.dtype or budget.dtype)
    if unknown := set(options.stages) - set(STAGES):
        raise UserError(f"--stages {min(unknown)}: no such stage; use {', '.join(STAGES)}")
    folder.mkdir(parents=True, exist_ok=True)
    fetch(folder / "weights")
    print(json.dumps(gym.write(data_settings(folder, budget))["splits"]))
    names = with_starts(options.stages or list(budget.stages or STAGES))
    for seed in options.seeds or range(budget.seeds):
        results = run_seed(folder, budget, seed, names, options.transfer)
        if results is None:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            return EXIT_PREEMPTED
        print(f"\nseed {seed}\n{table(results)}")
        for name, result in results.items():
            flop, seconds = (result["with_start"][cost] for cost in COSTS)
            print(
                f"{name}: {flop:.3g} FLOP and {seconds:.0f} s with its start; held-out templates {result['held_out']['noise_free']['value']:.3f}"
            )
    page = write_report([folder], folder / "report.html", title=f"SmolLM2, budget {options.budget}")
    print(f"report: {page}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.smollm2", description=__doc__)
    parser.add_argument("--budget", choices=tuple(BUDGETS), required=True)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/smollm2"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="default: those of the budget")
    parser.add_argument(
        "--stages",
        nargs="+",
        default=[],
        help=f"some of {', '.join(STAGES)}, with what they start from; default: all; under smoke one of each kind",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "auto"),
        help="type of the computation (model.dtype); default: float32, under gpu bfloat16",
    )
    parser.add_argument(
        "--transfer",
        default="",
        metavar="DIR",
        help=f"also evaluate on {', '.join(stages.TRANSFER)}, read from DIR/<name>_test.jsonl (problem and answer a line)",
    )
    options = parser.parse_args()
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
