"""Rows of the files that data sets come in, and their conversion into records, checked against the registry."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lgrpo.data.registry import DATA_SETS, Fields, check_split
from lgrpo.errors import UserError

SUFFIXES = (".jsonl", ".parquet", ".json", ".csv", ".txt")


def read_rows(path: pathlib.Path, suffix: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a file as dicts. suffix: kind of file, as downloads lose theirs. JSON is one array or one object a line; text has column `line`.

    Errors: UserError with file and row.
    """
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as parquet  # here, because few files are

            yield from parquet.read_table(path).to_pylist()
        elif suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
        else:
            text = path.read_text(encoding="utf-8-sig")
            if suffix == ".json" and text.lstrip().startswith("["):
                yield from json.loads(text)
                return
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    yield {"line": line} if suffix == ".txt" else _json_line(line, path, number)
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, csv.Error) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise UserError(f"{path}: not readable as {suffix} ({' '.join(str(error).split())[:200]}); download or save it again") from error


def _json_line(line: str, path: pathlib.Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{number}: broken JSON ({error}); mend or delete the line") from error


def convert(name: str, rows: Iterator[Mapping[str, Any]], where: str) -> list[Fields]:
    """Records of a file in the public form of the data set, or in ours (`problem`, `answer`, `cot`). Errors: UserError with file and row."""
    known, out = DATA_SETS[name], []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: record {index} is a {type(row).__name__}, not an object; mend or delete it")
        if "problem" in row and "answer" in row:
            fields = {key: "" if row.get(key) is None else str(row[key]) for key in ("problem", "cot", "answer")}
        elif all(column in row for column in known.columns):
            try:
                fields = known.read(index, row)
            except (TypeError, AttributeError, IndexError, KeyError) as error:
                raise UserError(f"{where}: record {index} is not as {name} publishes it ({error!r}); give the original file") from error
        else:
            raise UserError(
                f"{where}: record {index} has {sorted(map(str, row))}; needed are `problem` and `answer`, or {', '.join(known.columns)}"
            )
        if not fields["problem"].strip() or not fields["answer"].strip():
            raise UserError(f"{where}: record {index} has no problem or no answer; mend or delete it")
        out.append(fields)
    return out


def read_split(name: str, split: str, paths: Sequence[pathlib.Path], suffixes: Sequence[str]) -> list[Fields]:
    """All records of a split, from its files in order, checked against the registry. Errors: UserError."""
    rows = (row for path, suffix in zip(paths, suffixes, strict=True) for row in read_rows(path, suffix))
    where = ", ".join(str(path) for path in paths)
    records = convert(name, rows, where)
    check_split(name, split, records, where)
    return records
