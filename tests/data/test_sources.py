"""Records from tensorflow-datasets and from JSON lines, and what goes wrong there."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from lgrpo.config import DataConfig
from lgrpo.data import word_problems
from lgrpo.data.sources import load_records
from lgrpo.errors import UserError

GOOD = '{"problem": "p", "cot": "<<1+1=2>>", "answer": "2"}'
# Written by hand in the formats of GSM8K, GSM8K-Aug, GSM-Hard, SVAMP, MultiArith and AIME files.
REAL_SHAPES = [
    {"problem": "Sara saw 48 owls in June, and half as many in July. How many in all?", "cot": "<<48/2=24>> <<48+24=72>>", "answer": "72"},
    {"problem": "A duck lays 16 eggs. Three are eaten.", "cot": "<<16-3=13>>", "solution": "16 - 3 = <<16-3=13>>13", "answer": "13"},
    {"problem": "Grass grows .5 inches a month, from 2 to 4.", "cot": "<<4-2=2>> <<2/.5=4>>", "answer": "4"},
    {"problem": "The shop’s price is $1,250.", "cot": "", "answer": "1,250"},
    {"problem": "Debts of 9867630 dollars.", "answer": "-9867630.0"},
    {"problem": "A third.", "answer": "0.3333333"},
    {"problem": "Floats stay floats.", "answer": 12.5},
    {"problem": "Integers too.", "answer": 3},
    {"problem": "Find $\\frac{m}{n}$ for $s+\\frac{1}{2}$.", "answer": "204"},
    {"problem": "Leading zeros of an AIME answer.", "answer": "025"},
    {"problem": "Line one.\nLine two.", "answer": "\\frac{3}{4}"},
    {"problem": "A tab\tand a line separator \u2028 inside.", "answer": "7"},
    {"problem": "Emoji 🦆 and 汉字.", "answer": "8"},
    {"problem": "Null chain.", "cot": None, "answer": "9"},
    {"problem": "Extra fields.", "answer": "1", "id": 17, "tags": ["x"], "split": "train"},
]


def jsonl(tmp_path: pathlib.Path, text: str | bytes, split: str = "train") -> list:
    file = tmp_path / f"{split}.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_records(DataConfig(source="jsonl", path=str(tmp_path)), split)


def test_lines_in_the_shapes_of_public_data_sets(tmp_path):
    lines = [json.dumps(r, ensure_ascii=i % 2 == 0) for i, r in enumerate(REAL_SHAPES)]
    records = jsonl(tmp_path, "\ufeff" + "\r\n".join(lines) + "\n\n")
    assert len(records) == len(REAL_SHAPES)
    for i, (record, raw) in enumerate(zip(records, REAL_SHAPES, strict=True)):
        solution = {"solution": raw["solution"]} if "solution" in raw else {}
        assert record == {"problem": raw["problem"], "cot": raw.get("cot") or "", "answer": str(raw["answer"]), "uid": i} | solution


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + '\n\n{"problem": "p", "answer": ', r"train\.jsonl:3: broken JSON"),
        (GOOD + '\n{"problem": "p"}', r"train\.jsonl:2: no `answer`"),
        ('{"answer": "1"}', r"train\.jsonl:1: no `problem`"),
        ('{"problem": "", "answer": "1"}', r"train\.jsonl:1: `problem` is empty"),
        ('{"problem": "p", "answer": " "}', r"train\.jsonl:1: `answer` is empty"),
        ('{"problem": "p", "answer": ["1"]}', r"train\.jsonl:1: `answer` is a list"),
        ('{"problem": "p", "answer": true}', r"train\.jsonl:1: `answer` is a bool"),
        ('{"problem": "p", "answer": "1", "cot": 3}', r"train\.jsonl:1: `cot` is a int"),
        ('{"problem": "p", "answer": NaN}', r"train\.jsonl:1: `answer` is nan, no number"),
        ('{"problem": "p", "answer": -1e999}', r"train\.jsonl:1: `answer` is -inf, no number"),
        ('{"problem": "p", "answer": {"a": 1}}', r"train\.jsonl:1: `answer` is a dict"),
        (GOOD + '\n{"problem": "p \\ud83d q", "answer": "1"}', r"train\.jsonl:2: `problem` holds half a character"),
        ('{"problem": "p", "cot": "\\udc00", "answer": "1"}', r"train\.jsonl:1: `cot` holds half a character"),
        (
            '{"problem": "p", "answer": ' + "7" * 5000 + "}",
            r"train\.jsonl:1: broken JSON \(an integer has thousands of digits; write it as text",
        ),
        ('{"problem": "p", "answer": "1", "answer": "2"}', r"train\.jsonl:1: broken JSON \(the key 'answer' is there twice\)"),
        ('["p", "1"]', r"train\.jsonl:1: a JSON list"),
        ("[" * 100_000, r"train\.jsonl:1: broken JSON"),
        ("", r"train\.jsonl: no records"),
        ("\n \n", r"train\.jsonl: no records"),
        (b'{"problem": "\xff"}', r"train\.jsonl: not UTF-8 at byte 13"),
    ],
)
def test_broken_lines_are_named(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        jsonl(tmp_path, text)


def test_missing_files_say_what_is_there(tmp_path):
    (tmp_path / "test.jsonl").write_text(GOOD)
    with pytest.raises(UserError, match=r"train\.jsonl does not exist \(splits there: test\)"):
        load_records(DataConfig(source="jsonl", path=str(tmp_path)), "train")
    with pytest.raises(UserError, match="no such folder"):
        load_records(DataConfig(source="jsonl", path=str(tmp_path / "nowhere")), "train")
    with pytest.raises(UserError, match=r"data\.path"):
        load_records(DataConfig(source="jsonl"), "train")


def test_prepared_records_are_the_generated_ones_in_order(tfds_dir):
    for split, size in word_problems.DIFFICULTIES["mini"].sizes.items():
        records = load_records(DataConfig(difficulty="mini", data_dir=tfds_dir), split)
        assert len(records) == size
        for i in (0, 1, size // 2, size - 1):
            assert records[i] == {**word_problems.generate("mini", split, i), "uid": i}


def test_unknown_difficulty_and_split(tfds_dir):
    with pytest.raises(UserError, match=r"data\.difficulty.*mini"):
        load_records(DataConfig(difficulty="tiny", data_dir=tfds_dir), "train")
    with pytest.raises(UserError, match="valid"):
        load_records(DataConfig(difficulty="mini", data_dir=tfds_dir), "dev")


def test_data_of_another_generator_and_damaged_data_are_refused(tfds_dir, tmp_path, monkeypatch):
    data = DataConfig(difficulty="mini", data_dir=str(tmp_path))
    load_records(DataConfig(difficulty="mini", data_dir=tfds_dir), "test")
    shutil.copytree(f"{tfds_dir}/word_problems", tmp_path / "word_problems")
    with monkeypatch.context() as patch:
        patch.setattr(word_problems, "QUESTION", ("How many {m} has {s}?",))
        with pytest.raises(UserError, match="another version of the generator"):
            load_records(data, "test")
    for file in tmp_path.rglob("*test.array_record*"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="remove that folder"):
        load_records(data, "test")


def test_an_unusable_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"data\.data_dir"):
        load_records(DataConfig(difficulty="mini", data_dir=str(tmp_path / "file")), "train")


def test_two_processes_may_prepare_at_once_without_tensorflow(tmp_path):
    code = (
        "import sys; from lgrpo.config import DataConfig; from lgrpo.data.sources import load_records\n"
        "n = len(load_records(DataConfig(difficulty='mini', data_dir=sys.argv[1]), 'train'))\n"
        "print(n, 'tensorflow' in sys.modules, 'torch' in sys.modules)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out == "2000 False False\n"  # and nothing else on stdout
    assert not list(tmp_path.rglob("*incomplete*"))


def test_a_slice_of_a_split_is_those_records_numbered_anew(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(f'{{"problem": "p{i}", "answer": "{i}"}}\n' for i in range(5)))
    data = DataConfig(source="jsonl", path=str(tmp_path))
    for split, want in (("train[:2]", [0, 1]), ("train[3:]", [3, 4]), ("train[1:3]", [1, 2]), ("train[2:99]", [2, 3, 4])):
        records = load_records(data, split)
        assert [(r["answer"], r["uid"]) for r in records] == [(str(n), i) for i, n in enumerate(want)]
    for split, says in (("train[2]", "no slice"), ("train[:-1]", "no slice"), ("train[::2]", "no slice"), ("train[5:]", "train has 5")):
        with pytest.raises(UserError, match=says):
            load_records(data, split)


@pytest.mark.parametrize("other", ["null", "3", '[""]', '""', '" "', '"\\ud83d"'])
def test_a_column_that_is_no_solution_in_text_is_left_alone(tmp_path, other):
    (record,) = jsonl(tmp_path, GOOD[:-1] + f', "solution": {other}}}')
    assert "solution" not in record
