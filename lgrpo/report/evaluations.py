"""Which evaluations may stand side by side. A table holds evaluations of the same problems; what else differs between its rows is said as a warning."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lgrpo.evaluation.about import SAME
from lgrpo.report.runs import Group, Run
from lgrpo.report.text import visible

Cell = dict[str, Any]
UNKNOWN = "not recorded"
EVALUATED = (
    "data.source",
    "data.path",
    "data.difficulty",
    "data.eval_split",
    "data.grader",
    "evaluation.problems",
    "evaluation.noise_scale",
)
"""Settings that the eval/ metrics of training depend on beside the model."""
REWARDED = ("data.source", "data.path", "data.difficulty", "data.train_split", "data.grader", "data.reward")
"""Settings that the rewards of training depend on beside the model."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A row: runs of one group that were evaluated alike. `label` is unique in its table."""

    label: str
    group: Group
    runs: tuple[Run, ...]
    results: tuple[dict[str, Any], ...]  # eval.json of each run

    @property
    def about(self) -> dict[str, Any]:
        """What the evaluation says it was of; empty for one of an earlier version."""
        return self.results[0].get("about", {})

    def read(self, pick: Callable[[dict[str, Any]], Cell | None]) -> Cell | None:
        """One interval: of a single run as it is; of several seeds their mean, with the lowest and highest seed. None without any."""
        found = [cell for result in self.results if (cell := pick(result)) is not None]
        if len(found) < 2:
            return found[0] if found else None
        values = [cell["value"] for cell in found]
        return {"value": fmean(values), "low": min(values), "high": max(values)}

    def measured(self, part: str, name: str) -> Cell | None:
        """part: noise_free or sampled."""
        return self.read(lambda result: result.get(part, {}).get(name))

    def names(self, part: str) -> list[str]:
        """Metrics of a pass, sweep or list of interventions that any run has."""
        return list(dict.fromkeys(name for result in self.results for name in result.get(part, {})))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Evaluations of the same problems, of one folder name in the workdirs. `key` is unique in a report."""

    key: str
    name: str
    arms: tuple[Arm, ...]
    warnings: tuple[str, ...]

    @property
    def title(self) -> str:
        first = self.arms[0]
        return f"{self.name}: {split_of(first)}, {first.results[0].get('problems', '?')} problems"


def split_of(arm: Arm) -> str:
    """Data set and split in words."""
    about = arm.about
    return visible(f"{about['data']}, {about['split']}") if about else f"split {UNKNOWN}"


def _problems(result: Mapping[str, Any]) -> tuple[Any, ...]:
    about = result.get("about", {})
    return (about.get("data"), about.get("split"), about.get("problem_set"), result.get("problems"))


def _how(result: Mapping[str, Any]) -> tuple[Any, ...]:
    about = result.get("about", {})
    return tuple(about.get(key) for key in (*SAME.values(), "thinks_in", "step"))


def comparisons(groups: Sequence[Group], *, suites: bool) -> list[Comparison]:
    """All evaluations of the groups, those that saw the same problems together. suites: those of `eval --suite` (in folders of folders) or the others."""
    buckets: dict[str, dict[tuple[Any, ...], list[Arm]]] = defaultdict(lambda: defaultdict(list))
    for group in groups:
        parts: dict[tuple[Any, ...], list[tuple[Run, dict[str, Any]]]] = defaultdict(list)
        for run in group.runs:
            for name, result in run.evaluations.items():
                if ("/" in name) == suites:
                    parts[name, _problems(result), _how(result)].append((run, result))
        for (name, problems, _), members in parts.items():
            runs, results = zip(*members, strict=True)
            taken = {arm.label for arm in buckets[name][problems]}
            alone = group.label not in taken and sum(key[:2] == (name, problems) for key in parts) == 1
            label = group.label if alone else f"{group.label} ({', '.join(run.place for run in runs)})"
            buckets[name][problems].append(Arm(label, group, runs, results))
    out = []
    for name in sorted(buckets, key=lambda n: (n != "eval", n)):
        found = list(buckets[name].values())
        apart = _apart(name, found)
        for i, arms in enumerate(found):
            key = f"{name.replace('/', '-')}{'' if i == 0 else f'-{i + 1}'}"
            out.append(Comparison(key, name, tuple(arms), (*apart, *_warnings(arms))))
    return out


def _apart(name: str, found: Sequence[Sequence[Arm]]) -> list[str]:
    if len(found) < 2:
        return []
    said = "; ".join(
        f"{', '.join(arm.label for arm in arms)}: {split_of(arms[0])}, {arms[0].results[0].get('problems', '?')} problems" for arms in found
    )
    return [f"The evaluations {name} are not of the same problems, and their numbers are not to be compared ({said})."]


def differing(what: str, values: Iterable[tuple[str, Any]]) -> list[str]:
    """A warning where (label, value) pairs do not agree."""
    by_value: dict[str, list[str]] = defaultdict(list)
    for label, value in values:
        by_value["none" if value is None else visible(str(value)) or "empty"].append(label)
    if len(by_value) < 2:
        return []
    said = "; ".join(f"{value} in {', '.join(labels)}" for value, labels in by_value.items())
    return [f"Rows differ in more than the run: {what} is {said}."]


def _warnings(arms: Sequence[Arm]) -> list[str]:
    """What else than the weights differs between the rows, and what is not known of them."""
    known = [arm for arm in arms if arm.about]
    out = []
    for what, key in SAME.items():
        some = [arm for arm in known if key != "noise_scale" or arm.about.get("thinks_in") == "latents"]  # tokens know no noise
        out += differing(what, [(arm.label, arm.about.get(key)) for arm in some])
    for kind in dict.fromkeys(arm.group.kind for arm in known):
        out += differing("checkpoint step", [(arm.label, arm.about["step"]) for arm in known if arm.group.kind == kind])
    for arm in known:
        for run, result in zip(arm.runs, arm.results, strict=True):
            step, last = result["about"]["step"], run.rows[-1]["step"] if run.rows else None
            if result["about"].get("which") == "init":
                out.append(f"{arm.label}: evaluated are the weights that {run.place} starts from, not those it trained.")
            elif result["about"].get("which") == "newest" and last is not None and step < last:
                out.append(f"{arm.label}: evaluated at step {step}, but {run.place} has logged step {last}: evaluate it again.")
    if unknown := [arm.label for arm in arms if not arm.about]:
        out.append(f"Split, noise, sampler and checkpoint step are {UNKNOWN} (an evaluation of an earlier version): {', '.join(unknown)}.")
    return out


COLUMNS = (
    *("run", "thinks in", "split", "problems", "latent noise (sampled)", "answers (sampled)", "samples a problem", "checkpoint step"),
    *("accuracy, noise-free and greedy: pass@1", "accuracy, sampled: pass@1", "right in any of the samples: pass@k"),
    *("steps of thinking, noise-free", "answer tokens, noise-free", "share cut off or broken, sampled"),
)


def row(arm: Arm) -> list[Any]:
    """What COLUMNS say."""
    about = arm.about
    most = max((name for name in arm.names("sampled") if name.startswith("pass@")), key=lambda n: int(n[5:]), default="")
    return [
        arm.label,
        about.get("thinks_in", "–"),
        split_of(arm),
        arm.results[0].get("problems"),
        about.get("noise_scale"),
        about.get("answers", "–"),
        about.get("samples"),
        about.get("step"),
        arm.measured("noise_free", "pass@1"),
        arm.measured("sampled", "pass@1"),
        arm.measured("sampled", most),
        arm.measured("noise_free", "chain_tokens"),
        arm.measured("noise_free", "answer_tokens"),
        arm.measured("sampled", "invalid_frac"),
    ]


def table(found: Comparison) -> dict[str, Any]:
    """For the page."""
    return {"title": found.title, "columns": list(COLUMNS), "rows": [row(arm) for arm in found.arms]}


def suite_table(found: Sequence[Comparison]) -> dict[str, Any]:
    """All benchmarks in one table, each row with what it is of."""
    rows = [[c.name.removeprefix("eval/"), *row(arm)] for c in found for arm in c.arms]
    return {"title": "Benchmarks", "columns": ["benchmark", *COLUMNS], "rows": rows}


def curve_warnings(groups: Sequence[Group], kind: str) -> list[str]:
    """Settings of the data on which curves of training depend, where they differ between groups."""
    some = [g for g in groups if g.kind == kind and g.config]
    logged = {
        area: [g for g in some if any(n.startswith(area) for run in g.runs for r in run.rows for n in r)] for area in ("eval/", "reward/")
    }
    out: list[str] = []
    for area, paths in (("eval/", EVALUATED), ("reward/", REWARDED)):
        for path in paths:
            out += differing(f"{path} (behind {area})", [(g.label, g.config.get(path)) for g in logged[area]])
    return list(dict.fromkeys(out))


def curve_note(groups: Sequence[Group], kind: str) -> str:
    """On what the eval/ curves of training were measured, where that is one thing."""
    some = [g.config for g in groups if g.kind == kind and "data.eval_split" in g.config and g.config.get("evaluation.every")]
    said = {(c["data.source"], c["data.eval_split"], c.get("evaluation.problems")) for c in some}
    if len(said) != 1:
        return ""
    source, split, problems = said.pop()
    return f" Curves eval/: {source}, split {split}, {f'the first {problems}' if problems else 'all'} problems."
