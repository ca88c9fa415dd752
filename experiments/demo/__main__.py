"""Runs the demo: four stages, one evaluation each, one table. Interrupted and started again, it goes on where it was.

Run: python -m experiments.demo --workdir runs/demo [--seed 0]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from experiments.demo import explicit_grpo, explicit_sft, latent_grpo, latent_sft
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import diff, from_json, to_json
from lgrpo.errors import UserError
from lgrpo.evaluation import evaluate
from lgrpo.report.build import write_report
from lgrpo.runs.checkpoint import saved_extra
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.runs.metrics import summary_table
from lgrpo.runs.versions import versions
from lgrpo.train import rl, sft

# name -> (module, training loop, stage it starts from)
STAGES = {
    "explicit_sft": (explicit_sft, sft.run, None),
    "latent_sft": (latent_sft, sft.run, "explicit_sft"),
    "latent_grpo": (latent_grpo, rl.run, "latent_sft"),
    "explicit_grpo": (explicit_grpo, rl.run, "explicit_sft"),
}
LENGTHS = ("chain_tokens", "answer_tokens", "completion_tokens")


def stage_config(name: str, workdir: pathlib.Path, seed: int) -> ExperimentConfig:
    """Config of a stage inside `workdir`."""
    module, _, start = STAGES[name]
    cfg = dataclasses.replace(module.get_config(), seed=seed)
    origin = str(workdir / start) if start else ""
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, init_from=origin))


def summarise(workdir: pathlib.Path) -> dict[str, Any]:
    """Numbers of one finished and evaluated stage. Lengths are those of the noise-free pass, invalid_frac that of the sampled one."""
    result = json.loads((workdir / "eval" / "eval.json").read_text())
    return {
        "pass@1": result["noise_free"]["pass@1"],
        "pass@1_sampled": result["sampled"]["pass@1"],
        **{name: result["noise_free"][name] for name in LENGTHS},
        "invalid_frac": result["sampled"]["invalid_frac"],
        "seconds": round(saved_extra(workdir)["seconds"], 1),
    }


def finish_stage(
    cfg: ExperimentConfig, folder: pathlib.Path, loop: Callable[[ExperimentConfig, pathlib.Path], int]
) -> dict[str, Any] | None:
    """Trains and evaluates in `folder` unless that is done; None when a signal stopped it.

    Errors: UserError when the folder was finished with other settings.
    """
    done = folder / "stage.json"
    if done.exists():
        saved = json.loads(done.read_text())
        if changed := diff(from_json(saved["config"]), cfg):
            raise UserError(f"{done}: made with other settings ({', '.join(changed)}); remove {folder} or choose another --workdir")
        return saved["result"]
    print(f"\n== {cfg.name}", file=sys.stderr)
    if loop(cfg, folder) == EXIT_PREEMPTED:
        return None
    if evaluate.run(cfg, folder) == EXIT_PREEMPTED:
        return None
    result = summarise(folder)
    write_json(done, {"config": to_json(cfg), "result": result})
    return result


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file at once or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(value, file, indent=1)
    os.replace(file.name, path)


def table(results: dict[str, dict[str, Any]]) -> str:
    """The four models side by side."""

    def show(value: Any, digits: int) -> str:
        return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"

    rows = []
    for name, r in results.items():
        row = {"model": name, "pass@1": show(r["pass@1"], 3), "pass@1_sampled": show(r["pass@1_sampled"], 3)}
        row |= {"chain_tokens": show(r["chain_tokens"], 2), "answer_tokens": round(r["answer_tokens"]["value"], 2)}
        rows.append(row | {"invalid_frac": round(r["invalid_frac"]["value"], 4), "seconds": r["seconds"]})
    return summary_table(rows, list(rows[0]))


def run_demo(workdir: pathlib.Path, seed: int) -> int:
    """All stages. Writes results.json and returns the exit code, 75 when interrupted."""
    workdir.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in STAGES:
        result = finish_stage(stage_config(name, workdir, seed), workdir / name, STAGES[name][1])
        if result is None:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            return EXIT_PREEMPTED
        results[name] = result
    found = versions()
    write_json(workdir / "results.json", results | {"seed": seed, "git": found.get("git"), "versions": found})
    print("\n" + table(results) + f"\n\n95 % intervals over problems; details in {workdir / 'results.json'}")
    page = write_report([workdir / name for name in STAGES], workdir / "report.html", title=f"lgrpo demo, seed {seed}")
    print(f"report: {page}")
    return 0


def exit_code(work: Callable[[], int]) -> int:
    """work(), with a user's mistake as one line and exit code 2, and Ctrl-C as 75."""
    try:
        return work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # during an evaluation, which starts again; training saves first
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_PREEMPTED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo", description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    return exit_code(lambda: run_demo(args.workdir, args.seed))


if __name__ == "__main__":
    sys.exit(main())
