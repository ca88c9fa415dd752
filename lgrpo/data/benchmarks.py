"""Registered data sets as records: public or local files, through tensorflow-datasets, checked against the registry."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from lgrpo.data.builders.benchmarks.benchmarks_dataset_builder import Builder
from lgrpo.data.prepare import local_root, read, ready
from lgrpo.data.registry import DATA_SETS, Fields
from lgrpo.data.rows import SUFFIXES
from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.storage import Place


def local_files(name: str, path: str) -> dict[str, Place]:
    """Split -> file below data.path: the file itself, where the set has one split; else NAME_SPLIT.* or NAME/SPLIT.* in that folder."""
    root, splits = storage.place(path), DATA_SETS[name].splits
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


def prepare(name: str, data_dir: str, path: str = "") -> Any:
    """A tfds builder of the data set that is ready to read. path: data.path; empty: the public source, which needs a network.

    What comes from local files is kept under a name that depends on their content, so that changed files are prepared anew.
    Errors: UserError when files are missing, cannot be downloaded or do not hold what the registry says.
    """

    files = local_files(name, path) if path else {}
    if path and not files:
        raise UserError(
            f"data.path: {path} holds no {name}_<split> file ({', '.join(SUFFIXES)}); add it, or leave data.path empty to download"
        )
    root = local_root(data_dir)
    if files:
        root = root / f"local-{_content_key(files)}"

    try:
        return ready(lambda: Builder(files=files, config=name, data_dir=str(root), file_format="array_record"), data_dir)
    except UserError:
        raise
    except Exception as error:  # the network's and the file system's, with no common base
        hint = "" if files else f"; without a network, put {name}_<split>.jsonl into a folder and set --data.path"
        raise UserError(f"data: cannot prepare {name} in {root}: {' '.join(str(error).split())[:300]}{hint}") from error


def _content_key(files: Mapping[str, Place]) -> str:
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
    rows = read(builder, split)
    if len(rows) != splits[split].rows:
        raise UserError(f"data.data_dir: {builder.data_path} holds {len(rows)} records of {name}/{split}; remove that folder")
    return [Fields(problem=row["problem"], cot=row["cot"], answer=row["answer"]) for row in rows]
