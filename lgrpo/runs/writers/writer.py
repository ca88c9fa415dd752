"""The protocol of the writers, and what passes through it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Run:
    """What a writer is told when it opens."""

    folder: Path
    """The workdir."""
    step: int = 0
    """Finished steps that the run goes on from: entries of later steps come again."""
    name: str = "run"
    project: str = "lgrpo"
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings by dotted path."""
    id: str = ""
    """Of the run in a tracker; the same after a resume."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What there is to say of one step."""

    step: int
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By name; NaN and inf as they are."""
    samples: Sequence[Mapping[str, Any]] = ()
    """Rows of a table of completions, all with the same columns."""

    @property
    def finite(self) -> dict[str, float]:
        """The numbers that every tracker can draw."""
        return {name: x for name, x in self.numbers.items() if math.isfinite(x)}

    @property
    def table(self) -> dict[str, list[Any]]:
        """The samples as columns and data, the arguments of a tracker's table."""
        return {"columns": list(self.samples[0]), "data": [list(row.values()) for row in self.samples]}

    def logged(self, table: Callable[..., Any]) -> dict[str, Any]:
        """What a tracker logs: the numbers that it can draw, and the samples as its kind of table."""
        samples = {"samples": table(**self.table)} if self.samples else {}
        return self.finite | samples


class Writer(Protocol):
    """Somewhere to write entries to. Only the main process has writers; steps come in rising order."""

    def open(self, run: Run) -> None:
        """Begins, or goes on with what an earlier process of the same run wrote."""

    def write(self, entry: Entry) -> None:
        """Takes one step; what it wrote survives the death of the process as soon as this returns or shortly after."""

    def close(self) -> None:
        """Finishes what is under way."""
