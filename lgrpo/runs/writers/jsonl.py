"""The record of a run: metrics.jsonl, a line a step, and samples.jsonl, a line for each table of completions."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, TextIO

from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.writers.writer import Entry, Run

FILE = "metrics.jsonl"
SAMPLES = "samples.jsonl"


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl (or of the one in a workdir), oldest first; a half-written last line is left out, null stays None.

    Errors: UserError with the line number for any other line that is not a JSON object with a step.
    """
    path = storage.place(path)
    path = path / FILE if path.is_dir() else path
    lines = path.read_bytes().decode(errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            row["step"] + 0  # anything but an object with a number raises
            rows.append(row)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):  # no newline behind it: the writer was killed
                break
            raise UserError(f"{path}:{number}: not a line of metrics ({error}); remove it") from error
    return rows


def _rewind(path: Path, step: int) -> int:
    """Drop lines after `step` and a half-written last line. Atomic: a crash leaves the old file or the new one. Returns the last step that there was."""
    if not path.exists():
        return 0
    rows = read_metrics(path)
    storage.write_text(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))
    return max((row["step"] for row in rows), default=0)


def _line(entry: Entry) -> dict[str, Any]:
    """JSON has no NaN or inf: such a value is written as null, and "nonfinite" maps its name to "nan", "inf" or "-inf"."""
    odd = {name: str(x) for name, x in entry.numbers.items() if not math.isfinite(x)}
    line: dict[str, Any] = {"step": entry.step, **{name: None if name in odd else x for name, x in entry.numbers.items()}}
    return line | {"nonfinite": odd} if odd else line


class Jsonl:
    """Lines are on their way to the disk when write() returns."""

    def __init__(self) -> None:
        self._folder = Path()
        self._files: dict[str, TextIO] = {}
        self.seen = 0
        """The last step that an earlier process had written."""

    def open(self, run: Run) -> None:
        """Drops the lines after run.step, since they will come again."""
        self._folder = run.folder
        run.folder.mkdir(parents=True, exist_ok=True)
        self.seen, _ = (_rewind(run.folder / name, run.step) for name in (FILE, SAMPLES))
        self._file(FILE)

    def _file(self, name: str) -> TextIO:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("a")
        return self._files[name]

    def _append(self, name: str, line: dict[str, Any]) -> None:
        file = self._file(name)
        file.write(json.dumps(line) + "\n")
        file.flush()

    def write(self, entry: Entry) -> None:
        if entry.numbers:
            self._append(FILE, _line(entry))
        if entry.samples:
            self._append(SAMPLES, {"step": entry.step, "samples": list(entry.samples)})

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}
