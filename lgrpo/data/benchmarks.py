"""Registered data sets as records: public or local files, through tensorflow-datasets, checked against the registry."""

from __future__ import annotations

import csv
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lgrpo.data.prepare import download_and_prepare
from lgrpo.data.registry import DATA_SETS, Fields, check_split
from lgrpo.errors import UserError

SUFFIXES = (".jsonl", ".parquet", ".json", ".csv", ".txt")


# -- files ----------------------------------------------------------------------------------------------------------------------------------


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


def local_files(name: str, path: str) -> dict[str, pathlib.Path]:
    """Split -> file below data.path: the file itself, where the set has one split; else NAME_SPLIT.* or NAME/SPLIT.* in that folder."""
    root, splits = pathlib.Path(path).expanduser(), DATA_SETS[name].splits
    if root.is_file():
        if len(splits) > 1:
            raise UserError(
                f"data.path: {root} is a file, but {name} has the splits {', '.join(splits)}; give a folder with {name}_<split>.jsonl"
            )
        if root.suffix not in SUFFIXES:
            raise UserError(f"data.path: {root} is none of {', '.join(SUFFIXES)}; convert it")
        return {next(iter(splits)): root}
    found = {}
    for split in splits:
        candidates = [root / f"{stem}{suffix}" for stem in (f"{name}_{split}", f"{name}/{split}") for suffix in SUFFIXES]
        if (file := next((c for c in candidates if c.is_file()), None)) is not None:
            found[split] = file
    return found


# -- preparation ----------------------------------------------------------------------------------------------------------------------------


def prepare(name: str, data_dir: str, path: str = "") -> Any:
    """A tfds builder of the data set that is ready to read. path: data.path; empty: the public source, which needs a network.

    What comes from local files is kept under a name that depends on their content, so that changed files are prepared anew.
    Errors: UserError when files are missing, cannot be downloaded or do not hold what the registry says.
    """

    from lgrpo.data.builders.benchmarks.benchmarks_dataset_builder import Builder

    files = local_files(name, path) if path else {}
    if path and not files:
        raise UserError(
            f"data.path: {path} holds no {name}_<split> file ({', '.join(SUFFIXES)}); add it, or leave data.path empty to download"
        )
    root = pathlib.Path(data_dir).expanduser()
    if files:
        root = root / f"local-{_content_key(files)}"

    def builder() -> Builder:
        return Builder(files=files, config=name, data_dir=str(root), file_format="array_record")

    first = builder()
    if first.data_path.exists():
        return first
    try:
        download_and_prepare(first)
    except UserError:
        raise
    except Exception as error:  # the network's and the file system's, with no common base
        if not builder().data_path.exists():  # else another process was faster
            hint = "" if files else f"; without a network, put {name}_<split>.jsonl into a folder and set --data.path"
            raise UserError(f"data: cannot prepare {name} in {root}: {' '.join(str(error).split())[:300]}{hint}") from error
    return builder()


def _content_key(files: Mapping[str, pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for split, file in sorted(files.items()):
        try:
            digest.update(f"{split}\0{file.suffix}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise UserError(f"data.path: {file} cannot be read: {error}") from error
    return digest.hexdigest()[:12]


def load_fields(name: str, split: str, data_dir: str, path: str = "") -> list[Fields]:
    """All records of a split in file order. Errors: UserError, see prepare."""
    splits = DATA_SETS[name].splits
    if split not in splits:
        raise UserError(f"data: {name} has no split {split!r}; choose one of {', '.join(splits)}")
    builder = prepare(name, data_dir, path)
    if split not in builder.info.splits:
        raise UserError(f"data.path: {path} holds no {name}_{split} file ({', '.join(SUFFIXES)}); add it")
    try:
        source = builder.as_data_source(split)
        rows = source.__getitems__(range(len(source)))
    except Exception as error:  # the readers raise their own, undocumented types for damaged files
        raise UserError(f"data.data_dir: cannot read {builder.data_path}: {error}; remove that folder and it is prepared again") from error
    if len(rows) != splits[split].rows:
        raise UserError(f"data.data_dir: {builder.data_path} holds {len(rows)} records of {name}/{split}; remove that folder")
    return [{key: row[key].decode() for key in ("problem", "cot", "answer")} for row in rows]
