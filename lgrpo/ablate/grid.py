"""Grids as data, and the jobs that they stand for."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff, load_experiment, run_file, to_json
from lgrpo.config.validate import validate
from lgrpo.errors import UserError
from lgrpo.runs.storage import Place

FOLDER = Path("experiments") / "sweeps"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Diff = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Cells in their order: name -> difference to the experiment. `base` is the cell that the others are compared with."""

    name: str
    cells: dict[str, Diff]
    base: str

    def only(self, names: Sequence[str]) -> Grid:
        """These cells and the base, in the grid's order. Errors: UserError for a name that is no cell."""
        if unknown := [name for name in names if name not in self.cells]:
            raise UserError(f"{', '.join(unknown)}: no cell of the grid {self.name}; it has {', '.join(self.cells)}")
        return dataclasses.replace(self, cells={name: diff for name, diff in self.cells.items() if name in names or name == self.base})


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: a cell with a seed, in a folder of its own."""

    cell: str
    seed: int
    cfg: ExperimentConfig
    folder: Place

    @property
    def name(self) -> str:
        return f"{self.cell}/seed{self.seed}"


def find_grid(name: str, experiment: Path) -> Path:
    """File of a grid: a path, or a name in the folder experiments/sweeps here or beside the experiment. Errors: UserError with the nearest name."""
    path = Path(name)
    if path.suffix == ".py" or path.parent != Path():
        if not path.is_file():
            raise UserError(f"{name}: no such grid file; give a Python file with GRID or AXES, or a name from {FOLDER}")
        return path
    roots = [Path.cwd(), *(p.parent for p in experiment.resolve().parents if p.name == "experiments")]
    folders = list(dict.fromkeys(root / FOLDER for root in roots))
    known = sorted({p.stem for folder in folders for p in folder.glob("*.py") if not p.stem.startswith("_")})
    found = next((folder / f"{name}.py" for folder in folders if name in known and (folder / f"{name}.py").is_file()), None)
    if found is None:
        near = difflib.get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'} in {FOLDER}"
        raise UserError(f"{name}: no such grid; {mend}")
    return found


def _cells(found: Mapping[str, Any]) -> list[tuple[str, Diff]]:
    """GRID's cells, then the product of AXES. Errors: UserError for anything of another form."""
    grid, axes, common = (found.get(key, {}) for key in ("GRID", "AXES", "COMMON"))
    for key, value in (("GRID", grid), ("AXES", axes), ("COMMON", common), *((f"AXES[{a!r}]", v) for a, v in dict(axes).items())):
        if not isinstance(value, Mapping):
            raise UserError(f"{key} is a {type(value).__name__}; it must be a dict")
    cells = [(name, diff) for name, diff in grid.items()]
    if axes:
        for combination in itertools.product(*(axis.items() for axis in axes.values())):
            merged: Diff = {}
            for label, diff in combination:
                if not isinstance(diff, Mapping):
                    raise UserError(f"{label!r}: its difference is a {type(diff).__name__}; it must be a dict of settings")
                if twice := merged.keys() & diff.keys():
                    raise UserError(f"{label!r} sets {', '.join(sorted(twice))}, which another axis of its cell sets too")
                merged |= diff
            cells.append(("-".join(str(label) for label, _ in combination), merged))
    for name, diff in cells:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{name!r}: not a name for a cell; use letters, digits and _ . -, since it is a folder too")
        if not isinstance(diff, Mapping):
            raise UserError(f"{name!r}: its difference is a {type(diff).__name__}; it must be a dict of settings")
    return [(name, dict(common) | dict(diff)) for name, diff in cells]


def load_grid(path: Path, base: str = "") -> Grid:
    """A grid file: GRID = {cell: difference}, AXES = {axis: {label: difference}} whose combinations are cells, COMMON for all of them.

    base: name of the cell to compare with; default: the file's BASE, else the first cell. Errors: UserError.
    """
    try:
        found = vars(run_file(path))
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not found.get("GRID") and not found.get("AXES"):
        raise UserError(f"{path}: holds neither GRID nor AXES; see docs/ablations.md")
    try:
        cells = _cells(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    names = [name for name, _ in cells]
    lower = [name.lower() for name in names]  # a file system may not tell them apart
    if twice := sorted({name for name in names if lower.count(name.lower()) > 1}):
        raise UserError(f"{path}: {', '.join(twice)}: more than one cell of this name; rename one")
    chosen = base or found.get("BASE", names[0])
    if chosen not in names:
        raise UserError(f"{path}: base {chosen!r} is no cell; use one of {', '.join(names)}")
    return Grid(path.stem, dict(cells), chosen)


def parse_set(items: Sequence[str]) -> Diff:
    """["train.num_steps=50", "rollout.latent.law.clamp=None"] as a difference. Values are Python's; what is none is text. Errors: UserError."""
    out: Diff = {}
    for item in items:
        path, equals, text = item.partition("=")
        if not equals or not path:
            raise UserError(f"--set {item}: give section.field=value, e.g. train.num_steps=50")
        try:
            out[path.replace("-", "_")] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            out[path.replace("-", "_")] = text
    return out


def parse_seeds(text: str) -> list[int]:
    """ "3" -> [0, 1, 2]; "0,4" -> [0, 4]; "7," -> [7]. Errors: UserError."""
    parts = [p for p in text.split(",") if p.strip()]
    if not parts or not all(p.strip().isdecimal() for p in parts):
        raise UserError(f"--seeds {text}: give how many (3) or which (0,4; a single one as 4,)")
    seeds = [int(p) for p in parts] if "," in text else list(range(int(text)))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: {'no seed' if not seeds else 'a seed more than once'}")
    return seeds


def plan(experiment: Path, grid: Grid, seeds: Sequence[int], settings: Mapping[str, Any], workdir: Place) -> list[Job]:
    """Jobs, all cells of a seed together, so that differences exist early. `settings` change the base, a cell's difference comes after them.

    In train.init_from `{seed}` becomes the seed and, in a cell's, `{init_from}` that of the base. Errors: UserError for an unknown field, a
    wrong value or a config that cannot be trained (naming the cell), and for cells that come out the same.
    """
    base = apply_diff(load_experiment(experiment), settings)
    made: dict[str, ExperimentConfig] = {}
    for name, diff in grid.cells.items():
        if "seed" in diff:
            raise UserError(f"cell {name}: sets seed; seeds are given by --seeds, so that all cells share them")
        try:
            cfg = apply_diff(base, diff)
        except UserError as error:
            raise UserError(f"cell {name}: {error}") from error
        made[name] = dataclasses.replace(_started(cfg, base.train.init_from), name=name)
        if problems := _invalid(made[name]):
            raise UserError("\n  ".join([f"cell {name}: {len(problems)} problem(s):", *problems]))
        same = next((other for other in made if other != name and _content(made[other]) == _content(made[name])), None)
        if same:
            raise UserError(f"cells {same} and {name} are duplicates: every setting agrees, on this base; remove one")
    return [Job(name, seed, _seeded(cfg, seed), workdir / name / f"seed{seed}") for seed in seeds for name, cfg in made.items()]


def _started(cfg: ExperimentConfig, start: str) -> ExperimentConfig:
    """A start beside the base's, such as {init_from}/../explicit_sft."""
    own = cfg.train.init_from
    if "{init_from}" not in own:
        return cfg
    if not start:
        raise UserError(f"train.init_from={own!r}: the base has no start; give one with --set train.init_from=...")
    return apply_diff(cfg, {"train.init_from": os.path.normpath(own.replace("{init_from}", start))})


def _invalid(cfg: ExperimentConfig) -> list[str]:
    """What is wrong with it on any number of devices; the run itself checks the rest."""
    return [] if any(size > 1 for size in dataclasses.astuple(cfg.mesh)) else validate(cfg, device_count=1, kind="train")


def _content(cfg: ExperimentConfig) -> dict[str, Any]:
    return to_json(dataclasses.replace(cfg, name=""))


def _seeded(cfg: ExperimentConfig, seed: int) -> ExperimentConfig:
    start = cfg.train.init_from.replace("{seed}", str(seed))
    return dataclasses.replace(cfg, seed=seed, train=dataclasses.replace(cfg.train, init_from=start))
