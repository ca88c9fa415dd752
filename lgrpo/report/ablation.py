"""Reading an ablation's table. Its columns are the writer's business: whatever has a value (and an interval) is a metric here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lgrpo.errors import UserError
from lgrpo.report.text import visible
from lgrpo.runs import storage
from lgrpo.runs.storage import Place

_NAMES = ("cell", "name", "label")
_DIFFERENCE = ("difference", "diff", "delta", "paired", "vs_base")
_WRAPPERS = ("metrics", "values", "differences")  # say nothing about the number below them
_VALUE = ("value", "mean", "estimate")
Cell = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row: what was run, its numbers, and its paired differences to the base. Cells have value, low, high (None where there is no interval)."""

    name: str
    notes: dict[str, str]
    metrics: dict[str, Cell]
    differences: dict[str, Cell]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A table. `metrics` and `differences` name what any row has, in the order of their appearance."""

    source: str
    rows: list[Entry]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(m for row in self.rows for m in row.metrics))

    @property
    def differences(self) -> list[str]:
        return list(dict.fromkeys(m for row in self.rows for m in row.differences))


def _number(x: Any) -> float | None:
    return x if isinstance(x, int | float) and not isinstance(x, bool) else None


def _interval(tree: Mapping[str, Any]) -> Cell | None:
    """A cell from {"value", "low", "high"} under any of the usual names."""
    value = next((tree[k] for k in _VALUE if k in tree and (tree[k] is None or _number(tree[k]) is not None)), None)
    if not any(k in tree for k in _VALUE):
        return None
    low, high = (
        next((_number(tree[k]) for k in names if k in tree), None) for names in (("low", "lo", "ci_low"), ("high", "hi", "ci_high"))
    )
    return {"value": value, "low": low, "high": high}


def _entry(row: Mapping[str, Any], index: int) -> Entry:
    named = next((k for k in _NAMES if isinstance(row.get(k), str)), None)
    entry = Entry(visible(row[named]) if named else f"row {index + 1}", {}, {}, {})

    def put(path: Sequence[str], cell: Cell) -> None:
        is_difference = any(word in part for part in path for word in _DIFFERENCE)
        kept = [p for p in path if p not in _WRAPPERS and p not in _DIFFERENCE]
        for word in _DIFFERENCE:
            kept = [p.removesuffix(f"_{word}").removeprefix(f"{word}_") for p in kept]
        (entry.differences if is_difference else entry.metrics)[".".join(kept) or "difference"] = cell

    def walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for key, value in tree.items():
            here = (*path, str(key))
            if isinstance(value, Mapping):
                if (cell := _interval(value)) is not None:
                    put(here, cell)
                    rest = {k: v for k, v in value.items() if isinstance(v, Mapping)}
                    walk(rest, here)
                else:
                    walk(value, here)
            elif _number(value) is not None:
                put(here, {"value": value, "low": None, "high": None})
            elif value is not None and key != named:
                entry.notes[".".join(here)] = value if isinstance(value, str) else json.dumps(value)

    walk(row, ())
    return entry


def read_ablation(path: Place) -> Ablation:
    """Errors: UserError for a file that holds no list of rows."""
    try:
        data = json.loads(storage.text_of(path))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); write it again with `python -m lgrpo ablate`") from error
    if isinstance(data, Mapping):
        data = next((v for v in data.values() if isinstance(v, list) and v and all(isinstance(r, Mapping) for r in v)), None)
    if not isinstance(data, list) or not all(isinstance(row, Mapping) for row in data):
        raise UserError(f"{path}: holds no list of rows; write it again with `python -m lgrpo ablate`")
    return Ablation(str(path), [_entry(row, i) for i, row in enumerate(data)])
