"""Finding runs in folders and reading what they left: config, metrics, evaluations. Lenient about what is missing, strict about what is broken."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lgrpo.errors import UserError
from lgrpo.report.text import visible
from lgrpo.runs import storage
from lgrpo.runs.metrics import FILE, read_metrics
from lgrpo.runs.storage import Place

ABLATION = "ablation.json"
_SKIP = {"checkpoints", "tensorboard", "wandb", "shards", "hf"}  # folders of a workdir in which no runs lie
_DEPTH = 5
# What may differ between the seeds of one experiment, and what does not change an experiment at all.
_APART = ("seed", "train.init_from", "data.data_dir", "logging.", "checkpoint.", "mesh.")


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir. `place` is its folder below what was given on the command line."""

    folder: Place
    place: str
    config: dict[str, Any]  # dotted path -> value; empty when there is no config.json
    versions: dict[str, str]
    rows: list[dict[str, Any]]  # lines of metrics.jsonl
    evaluations: dict[str, dict[str, Any]]  # eval.json by its folder in the workdir: eval, eval/svamp

    @property
    def name(self) -> str:
        return visible(str(self.config.get("name", self.folder.name)))

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def kind(self) -> str:
        """rl or sft, by what was logged; eval where nothing was."""
        names = {name for row in self.rows[:1] for name in row}
        return "rl" if any(n.startswith("reward/") for n in names) else "sft" if any(n.startswith("sft/") for n in names) else "eval"


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed and in nothing else that matters. `label` is unique in a report."""

    label: str
    runs: tuple[Run, ...]

    @property
    def kind(self) -> str:
        return self.runs[0].kind

    @property
    def config(self) -> dict[str, Any]:
        return self.runs[0].config


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> {dotted path: leaf}."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def _load(path: Place) -> Any:
    """Errors: UserError for a file that is not JSON."""
    try:
        return json.loads(storage.text_of(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); remove it or make it again") from error


def _evaluations(folder: Place) -> dict[str, dict[str, Any]]:
    """Every evaluation of a workdir, and of the suites in it, by its folder. Workdirs inside it have theirs for themselves."""
    files = [file for pattern in ("*/eval.json", "*/*/eval.json") for file in sorted(folder.glob(pattern))]
    places = {file: file.parent.relative_to(folder) for file in files}
    own = {file: place for file, place in places.items() if not set(place.parts) & _SKIP and not _began(folder / place.parts[0])}
    return {place.as_posix(): _load(file) for file, place in own.items()}


def _began(folder: Place) -> bool:
    """Whether a loop wrote to this folder."""
    return (folder / FILE).is_file() or (folder / "config.json").is_file()


def is_run(folder: Place) -> bool:
    """Whether a folder is a workdir that a loop or an evaluation wrote to."""
    return _began(folder) or (folder / "eval" / "eval.json").is_file()


def read_run(folder: Place, place: str = "") -> Run:
    """Errors: UserError or ValueError for a file that is damaged."""
    saved = _load(folder / "config.json") if (folder / "config.json").is_file() else {}
    rows = read_metrics(folder) if (folder / FILE).is_file() else []
    return Run(folder, place or folder.name, flatten(saved.get("config", {})), saved.get("versions", {}), rows, _evaluations(folder))


def _walk(folder: Place, depth: int = 0) -> Iterator[Place]:
    if is_run(folder):
        yield folder
    elif depth < _DEPTH:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and child.name not in _SKIP and not child.name.startswith("."):
                yield from _walk(child, depth + 1)


def find_runs(paths: Sequence[Place]) -> list[Run]:
    """Runs in the given folders: a folder is a run, or holds runs some levels below. Runs without metrics and evaluation are left out.

    Errors: UserError for a path that does not exist, and when nothing was found.
    """
    folders: dict[Place, str] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give the workdir of a run, or a folder of runs")
        for folder in _walk(path):
            place = os.path.join(path.name, folder.relative_to(path)) if folder != path else path.name
            folders.setdefault(storage.resolved(folder), place)
    runs = [read_run(folder, place) for folder, place in folders.items()]
    runs = [run for run in runs if run.rows or run.evaluations]
    if not runs:
        raise UserError(
            f"{', '.join(map(str, paths))}: no metrics.jsonl and no eval.json there or below; give a workdir that a run wrote to"
        )
    return runs


def _key(run: Run) -> str:
    same = {
        path: value for path, value in run.config.items() if not any(path == a or (a[-1] == "." and path.startswith(a)) for a in _APART)
    }
    return json.dumps([run.kind, same or run.place], sort_keys=True)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Runs to groups of seeds, in the order in which they were found. A seed that comes twice starts a group of its own."""
    buckets: dict[str, list[list[Run]]] = defaultdict(list)
    for run in runs:
        parts = buckets[_key(run)]
        free = next((part for part in parts if run.seed not in [r.seed for r in part]), None)
        if free is None:
            parts.append([run])
        else:
            free.append(run)
    members = [tuple(part) for parts in buckets.values() for part in parts]
    names = Counter(part[0].name for part in members)
    labels = [part[0].name if names[part[0].name] == 1 else f"{part[0].name} ({part[0].place})" for part in members]
    return [Group(label, part) for label, part in zip(labels, members, strict=True)]


def config_diff(
    base: Mapping[str, Any], other: Mapping[str, Any], *, ignore: Sequence[str] = ("name", "seed")
) -> list[tuple[str, Any, Any]]:
    """(path, value in base, value in other) where two flat configs differ; a field that one of them lacks is None there."""
    paths = dict.fromkeys([*base, *other])
    return [(p, base.get(p), other.get(p)) for p in paths if p not in ignore and base.get(p) != other.get(p)]
