"""Records: from the embedded task and the registered data sets (tensorflow-datasets), or from JSON lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

from lgrpo.config import DataConfig, GymConfig
from lgrpo.data import word_problems
from lgrpo.data.benchmarks import load_fields
from lgrpo.data.fields import answer_of, is_text, parse_json, text_of
from lgrpo.data.files import inside
from lgrpo.data.prepare import local_root, read, ready
from lgrpo.data.registry import DATA_SETS, locate
from lgrpo.errors import UserError
from lgrpo.runs import storage

_SLICE = re.compile(r"\[(\d*):(\d*)\]", re.ASCII)


class Record(TypedDict):
    """One problem. uid is its position among the records that were asked for; cot is empty when the source has no chain; solution, a worked
    solution in prose, is there only where the source has one."""

    problem: str
    cot: str
    answer: str
    uid: int
    solution: NotRequired[str]


def load_records(data_cfg: DataConfig, split: str) -> list[Record]:
    """All records of a split, in file order, so that `records[i]["uid"] == i`. split: a name, or NAME/SPLIT of a registered data set; either may
    end in a slice as tensorflow-datasets writes it: train[:3000], train[500:], test[100:200].

    Errors: UserError for an unknown difficulty or split, a missing, empty or broken file, a record without `problem` or `answer`, a slice that is
    none or holds nothing.
    """
    whole, bracket, _ = split.partition("[")
    if not bracket:
        return _whole_split(data_cfg, split)
    found = _SLICE.fullmatch(split.removeprefix(whole))
    if found is None:
        raise UserError(f"data: {split!r} is no slice of a split; write {whole}[:3000], {whole}[500:] or {whole}[100:200]")
    records = _whole_split(data_cfg, whole)
    kept = records[slice(*(int(end) if end else None for end in found.groups()))]
    if not kept:
        raise UserError(f"data: {split!r} holds no record: {whole} has {len(records)}")
    return [Record(**{**record, "uid": i}) for i, record in enumerate(kept)]


def _whole_split(data_cfg: DataConfig, split: str) -> list[Record]:
    source, split = locate(data_cfg.source, split)
    if source in DATA_SETS:
        rows = load_fields(source, split, data_cfg.data_dir, data_cfg.path)
        return [Record(problem=row["problem"], cot=row["cot"], answer=row["answer"], uid=i) for i, row in enumerate(rows)]
    if source == "jsonl":
        return _load_jsonl(data_cfg.path, split)
    if source == "reasoning_gym":
        return _load_gym(data_cfg.gym, data_cfg.data_dir, split)
    return _load_word_problems(data_cfg.difficulty, data_cfg.data_dir, split)


def prepare_word_problems(difficulty: str, data_dir: str) -> Any:
    """Prepares the embedded task unless that was done before; returns a tfds builder that is ready to read. Errors: UserError."""
    word_problems.level_of(difficulty)
    from lgrpo.data.builders.word_problems.word_problems_dataset_builder import Builder

    return _ready(
        lambda root: Builder(config=difficulty, data_dir=root, file_format="array_record"), data_dir, f"word_problems/{difficulty}"
    )


def _ready(builder: Callable[[str], Any], data_dir: str, name: str) -> Any:
    """builder: of its folder. name: for the message."""
    root = str(local_root(data_dir))
    try:
        return ready(lambda: builder(root), data_dir)
    except OSError as error:
        raise UserError(f"data.data_dir: cannot prepare {name} in {root}: {error}; free space or choose a writable folder") from error


def _load_word_problems(difficulty: str, data_dir: str, split: str) -> list[Record]:
    sizes = word_problems.level_of(difficulty).sizes
    if split not in sizes:
        raise UserError(f"data: split {split!r} of word_problems does not exist; choose one of {', '.join(sizes)}")
    builder = prepare_word_problems(difficulty, data_dir)
    records = [Record(problem=row["problem"], cot=row["cot"], answer=row["answer"], uid=i) for i, row in enumerate(read(builder, split))]
    # Data prepared by another state of the generator would silently be another task: compare both ends.
    last = sizes[split] - 1
    if len(records) != last + 1 or any(records[i] != {**word_problems.generate(difficulty, split, i), "uid": i} for i in (0, last)):
        raise UserError(
            f"data.data_dir: {builder.data_path} was prepared by another version of the generator; remove it and it is prepared again"
        )
    return records


def _load_gym(settings: GymConfig, data_dir: str, split: str) -> list[Record]:
    from lgrpo.data.builders.reasoning_gym.reasoning_gym_dataset_builder import Builder

    name = f"reasoning_gym/{settings.dataset}"
    builder = _ready(lambda root: Builder(settings=settings, data_dir=root, file_format="array_record"), data_dir, name)
    if split not in builder.info.splits:
        raise UserError(f"data: split {split!r} of {name} does not exist; choose one of {', '.join(sorted(builder.info.splits))}")
    records = []
    for i, row in enumerate(read(builder, split)):
        record = Record(problem=row["problem"], cot=row["cot"], answer=row["answer"], uid=i)
        records.append(record | {"solution": row["solution"]} if row["solution"] else record)
    return records


def _load_jsonl(path: str, split: str) -> list[Record]:
    if not path:
        raise UserError("data.path: empty, but data.source is jsonl; set it to the folder that holds <split>.jsonl")
    folder = storage.place(path)
    file = inside(folder, f"{split}.jsonl", "data: the split's name")
    if not file.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.jsonl"))) if folder.is_dir() else ""
        hint = f"splits there: {there}" if there else "the folder holds no .jsonl file" if folder.is_dir() else "no such folder"
        raise UserError(f"data: {file} does not exist ({hint}); mend data.path or the split's name")
    records: list[Record] = []
    try:
        # split on newlines only: splitlines() would also cut at characters that JSON allows inside strings
        lines = storage.text_of(file).split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            records.append(_parse(line, f"{file}:{number}", uid=len(records)))
    if not records:
        raise UserError(f"{file}: no records; write one JSON object with `problem` and `answer` a line")
    return records


def _parse(line: str, where: str, uid: int) -> Record:
    """One line of JSON as a record; fields that the project does not know are left out."""
    try:
        raw = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where}: broken JSON ({error}); mend or delete the line") from error
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a JSON {type(raw).__name__}, not an object with `problem` and `answer`; mend or delete the line")
    try:
        cot = "" if raw.get("cot") is None else text_of(raw["cot"], "cot")
        record = Record(problem=text_of(raw.get("problem"), "problem"), cot=cot, answer=answer_of(raw.get("answer")), uid=uid)
    except ValueError as error:
        raise UserError(f"{where}: {error}; give it as text or delete the line") from error
    if empty := next((name for name in ("problem", "answer") if not record[name].strip()), None):
        raise UserError(f"{where}: `{empty}` is empty; fill it in or delete the line")
    solution = raw.get("solution")  # read only where sft.answer asks for it: whatever else it holds is another column of the file
    if isinstance(solution, str) and is_text(solution) and solution.strip():
        record["solution"] = solution.strip()
    return record
