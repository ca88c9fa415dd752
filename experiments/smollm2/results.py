"""What a study wrote, kept small: experiments/smollm2/results/<budget>/seed<n>/<stage>/ holds what the tables of docs/smollm2.md are drawn from.

Run: python -m experiments.smollm2.tables --collect runs/smollm2/cpu
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

from experiments.smollm2.stages import STAGES, origins
from lgrpo.errors import UserError
from lgrpo.evaluation.compare import RESULT, load
from lgrpo.evaluation.summary import columns
from lgrpo.runs.metrics import read_metrics

RESULTS = pathlib.Path(__file__).parent / "results"
_KEPT = ("reward/", "eval/", "rollout/", "policy/", "sft/", "perf/")  # areas of metrics
CHOICE, PROBLEMS = "choice", "dataset.json"
OUTCOMES, PASSES = "outcomes.json", ("noise_free", "sampled")
COSTS = {"flop": "perf/flop_total", "seconds": "perf/seconds_total"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage of one seed, as its files say. evaluations: eval.json by folder: eval, held_out, transfer/<name>."""

    seed: int
    cost: dict[str, float]
    """flop and seconds of the stage alone; what it did not log is left out."""
    evaluations: dict[str, dict[str, Any]]
    outcomes: dict[str, dict[str, dict[str, float]]]
    """By folder of the evaluation (eval, as_<stage>) and by pass, the share of right samples of each problem of `test`, by its number."""


def _without_places(result: dict[str, Any], stage: str) -> dict[str, Any]:
    """An eval.json that says what was evaluated, and not where that lay on the machine."""
    about = dict(result.get("about", {}))
    about |= {name: value for name, value in (("checkpoint", stage), ("data", str(about.get("data")).split(" ")[0])) if name in about}
    return result | {"about": about}


def _outcomes(source: pathlib.Path) -> dict[str, dict[str, float]]:
    """What pairs an evaluation with another of the same problems: by pass, the share of right samples by problem."""
    rows = load(source)[""]
    tables = {how: columns(rows[how]) for how in PASSES if how in rows}
    return {
        how: {str(uid): float(right) for uid, right in zip(t["uid"][:, 0], t["correct"].mean(1), strict=True)} for how, t in tables.items()
    }


def _collect_stage(source: pathlib.Path, out: pathlib.Path) -> None:
    out.mkdir(parents=True)
    rows = [{n: v for n, v in row.items() if n == "step" or n.startswith(_KEPT)} for row in read_metrics(source)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for file in sorted(source.glob("**/eval.json")):
        to = out / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(_without_places(json.loads(file.read_text()), source.name), indent=1) + "\n", encoding="utf-8")
    for rows in [*source.glob(f"eval/{RESULT}"), *source.glob(f"as_*/{RESULT}")]:
        (out / rows.parent.name / OUTCOMES).write_text(json.dumps(_outcomes(rows)) + "\n", encoding="utf-8")


def collect(source: pathlib.Path, out: pathlib.Path = RESULTS) -> list[str]:
    """Copies the finished stages of a study's folder (<workdir>/<budget>), and the candidates for one, to out/<budget>. A seed, and each
    candidate, takes the place of what was there; seeds and candidates that the study does not have stay. Returns their names, seed<n>/<stage>.
    Errors: UserError when none is finished, and when seeds that stay saw other problems."""
    done = sorted(file.parent for file in source.glob("seed*/*/stage.json") if file.parent.name in STAGES)
    done += sorted(file.parent for file in source.glob(f"{CHOICE}/*/stage.json"))
    if not done:
        raise UserError(f"{source}: no finished stage there; give the folder of a budget, such as runs/smollm2/cpu")
    target = out / source.name
    replaced = {target / (stage if stage.parent.name == CHOICE else stage.parent).relative_to(source) for stage in done}
    problems, kept = source / "data" / PROBLEMS, target / PROBLEMS
    if (
        {*target.glob("seed*/"), *target.glob(f"{CHOICE}/*/")} - replaced
        and problems.exists()
        and kept.exists()
        and problems.read_text() != kept.read_text()
    ):
        raise UserError(f"{problems}: other problems than those of the results that would stay in {target}; move these away first")
    for folder in replaced:
        shutil.rmtree(folder, ignore_errors=True)
    for stage in done:
        _collect_stage(stage, target / stage.relative_to(source))
        summary = stage.parent / "results.json"
        if summary.exists():
            (target / stage.parent.name / "results.json").write_text(summary.read_text(), encoding="utf-8")
    if problems.exists():
        shutil.copyfile(problems, kept)
    return [str(stage.relative_to(source)) for stage in done]


def _read_stage(folder: pathlib.Path, seed: int) -> Stage:
    last = (read_metrics(folder) or [{}])[-1]
    cost = {what: last[metric] for what, metric in COSTS.items() if metric in last}
    found = {str(file.parent.relative_to(folder).as_posix()): json.loads(file.read_text()) for file in folder.glob("**/eval.json")}
    outcomes = {file.parent.name: json.loads(file.read_text()) for file in folder.glob(f"*/{OUTCOMES}")}
    return Stage(seed, cost, found, outcomes)


def read(budget: pathlib.Path) -> dict[str, list[Stage]]:
    """Stages by name, in the order of STAGES, each with its seeds. What is missing is left out."""
    out: dict[str, list[Stage]] = {}
    for name in STAGES:
        for folder in sorted(budget.glob(f"seed*/{name}")):
            if (folder / "eval" / "eval.json").exists():
                out.setdefault(name, []).append(_read_stage(folder, int(folder.parent.name.removeprefix("seed"))))
    return out


def read_candidates(budget: pathlib.Path) -> dict[str, list[Stage]]:
    """The candidates for Latent-SFT, by name: those of experiments/smollm2/choose.py."""
    return {file.parents[1].name: [_read_stage(file.parents[1], 0)] for file in sorted(budget.glob(f"{CHOICE}/*/eval/eval.json"))}


def with_start(stages: dict[str, list[Stage]], name: str, seed: int, what: str) -> float | None:
    """flop or seconds of a stage and of those that it started from; None where one of them is not known."""
    costs = [next((s.cost.get(what) for s in stages.get(at, []) if s.seed == seed), None) for at in origins(name)]
    return None if None in costs else sum(costs)
