"""Rows of the files that data sets come in, and their conversion into records, checked against the registry."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lgrpo.data.fields import answer_of, parse_json, text_of
from lgrpo.data.registry import DATA_SETS, Fields, check_split
from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.storage import Place

SUFFIXES = (".jsonl", ".parquet", ".json", ".csv", ".txt")


Placed = tuple[str, Any]  # where a row stands, and the row


def read_rows(path: Place, suffix: str) -> Iterator[Placed]:
    """Rows of a file, each with its place. suffix: kind of file, as downloads lose theirs. JSON is one array or one object a line; text has column
    `line`.

    Errors: UserError with file and row.
    """
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as parquet  # here, because few files are

            table = parquet.read_table(storage.local(path))
            _unique(table.column_names)
            yield from _numbered(path, table.to_pylist())
        elif suffix == ".csv":
            reader = csv.DictReader(io.StringIO(storage.text_of(path), newline=""))
            _unique(list(reader.fieldnames or ()))
            yield from _numbered(path, reader)
        else:
            text = storage.text_of(path)
            if suffix == ".json" and text.lstrip().startswith("["):
                yield from _numbered(path, parse_json(text))
                return
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    yield f"{path}:{number}", ({"line": line} if suffix == ".txt" else _json_line(line, path, number))
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise UserError(f"{path}: not readable as {suffix} ({' '.join(str(error).split())[:200]}); download or save it again") from error


def _numbered(path: Place, rows: Iterable[Any]) -> Iterator[Placed]:
    for index, row in enumerate(rows):
        yield f"{path}: record {index}", row


def _unique(columns: Sequence[str]) -> None:
    if twice := next((name for name in columns if list(columns).count(name) > 1), None):
        raise ValueError(f"the column {twice[:40]!r} is there twice")


def _json_line(line: str, path: Place, number: int) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: broken JSON ({error}); mend or delete the line") from error


def convert(name: str, rows: Iterable[Placed]) -> list[Fields]:
    """Records of a file in the public form of the data set, or in ours (`problem`, `answer`, `cot`). Errors: UserError with file and row."""
    known, out = DATA_SETS[name], []
    for index, (where, row) in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"{where} is a {type(row).__name__}, not an object; mend or delete it")
        own = "problem" in row and "answer" in row
        read = _read_own if own else known.reader(row)
        if read is None:
            raise UserError(f"{where} has {sorted(map(str, row))[:20]}; needed are `problem` and `answer`, or {', '.join(known.columns)}")
        try:
            fields = read(index, row)
            fields = {key: text_of(value, key) for key, value in fields.items()}
        except (TypeError, AttributeError, IndexError, KeyError, ValueError) as error:
            said = str(error) if isinstance(error, ValueError) else repr(error)
            form = "is no record" if own else f"is not as {name} publishes it"
            raise UserError(f"{where} {form} ({said}); mend or delete it, or give the original file") from error
        if not fields["problem"].strip() or not fields["answer"].strip():
            raise UserError(f"{where} has no problem or no answer; mend or delete it")
        out.append(fields)
    return out


def _read_own(_: int, row: Mapping[str, Any]) -> Fields:
    """A row in our form. What is null is empty."""
    problem, cot = (text_of("" if row.get(key) is None else row[key], key) for key in ("problem", "cot"))
    return {"problem": problem, "cot": cot, "answer": "" if row["answer"] is None else answer_of(row["answer"])}


def read_split(name: str, split: str, paths: Sequence[Place], suffixes: Sequence[str]) -> list[Fields]:
    """All records of a split, from its files in order, checked against the registry. Errors: UserError."""
    rows = (row for path, suffix in zip(paths, suffixes, strict=True) for row in read_rows(path, suffix))
    where = ", ".join(str(path) for path in paths)
    records = convert(name, rows)
    check_split(name, split, records, where)
    return records
