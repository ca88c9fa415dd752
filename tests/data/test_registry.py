"""The registry, its builder on local and (pretended) public files, and what happens when rows, text or hashes differ."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import typing

import pytest

from lgrpo.config import Benchmark, DataConfig, ExperimentConfig
from lgrpo.data import registry
from lgrpo.data.overlap import overlap_report, overlap_table, problem_hash
from lgrpo.data.pipeline import prompt_stream
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.data.registry import DATA_SETS, Split, fingerprint, instruction_of, locate, normal_text
from lgrpo.data.sources import load_records
from lgrpo.errors import UserError

SHARED = pathlib.Path("/work/shared/data")
# One row of each public file, and what it means to us.
PUBLIC = {
    "gsm8k": (
        {"question": "Q?", "answer": "He has 48/2 = <<48/2=24>>24.\nAll: <<48+1000=1048>>1,048\n#### 1,048"},
        {"problem": "Q?", "cot": "<<48/2=24>> <<48+1000=1048>>", "answer": "1048"},
    ),
    "gsm8k_aug": ({"line": "Q?||<<1+2=3>> <<3*2=6>> #### 6"}, {"problem": "Q?", "cot": "<<1+2=3>> <<3*2=6>>", "answer": "6"}),
    "gsm_hard": ({"input": "Q?", "code": "x", "target": -9867630.0}, {"problem": "Q?", "cot": "", "answer": "-9867630.0"}),
    "svamp": (
        {"Body": "Ann has 3 pens", "Question": "How many?", "Answer": 3.0, "Equation": "3"},
        {"problem": "Ann has 3 pens. How many?", "cot": "", "answer": "3"},
    ),
    "multiarith": ({"sQuestion": " Q? ", "lSolutions": [39.0], "iIndex": 1}, {"problem": "Q?", "cot": "", "answer": "39"}),
    "math500": (
        {"problem": "P", "solution": "s", "answer": "\\frac{1}{2}", "level": 1},
        {"problem": "P", "cot": "", "answer": "\\frac{1}{2}"},
    ),
    "aime24": ({"id": 1, "problem": "P", "answer": "025"}, {"problem": "P", "cot": "", "answer": "025"}),
    "aime25": ({"question": "P", "answer": "70"}, {"problem": "P", "cot": "", "answer": "70"}),
    "gpqa_diamond": (
        {"Question": "Q", "Correct Answer": "right ", "Incorrect Answer 1": "x", "Incorrect Answer 2": "y", "Incorrect Answer 3": "z"},
        {"problem": "Q\n\nA. y\nB. x\nC. z\nD. right", "cot": "", "answer": "D"},
    ),
    "dapo_math_17k": ({"prompt": "P", "solution": "34", "ability": "MATH"}, {"problem": "P", "cot": "", "answer": "34"}),
}


@pytest.fixture
def small(monkeypatch):
    """Factory: pretends that a data set's splits have these sizes and hashes."""

    def make(name: str, **splits: Split) -> None:
        monkeypatch.setitem(DATA_SETS, name, dataclasses.replace(DATA_SETS[name], splits=splits))

    return make


def lines(path: pathlib.Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(tmp_path, name: str, **fields) -> DataConfig:
    return DataConfig(source=name, data_dir=str(tmp_path / "tfds"), **{"path": str(tmp_path), **fields})


def test_the_config_knows_the_same_names():
    assert set(typing.get_args(Benchmark)) == set(DATA_SETS) and len(DATA_SETS) == 10
    for name, known in DATA_SETS.items():
        assert known.license and known.homepage.startswith("https://") and known.columns and known.grader
        for split, facts in known.splits.items():
            assert facts.rows > 0 and all(url.startswith("https://") for url in facts.urls), (name, split)
            assert facts.sha256 == "" or len(facts.sha256) == 64


@pytest.mark.parametrize("name", PUBLIC)
def test_public_rows_become_records(name):
    row, fields = PUBLIC[name]
    assert set(DATA_SETS[name].columns) <= row.keys()
    assert DATA_SETS[name].read(0, row) == fields


def test_options_are_shuffled_but_always_alike():
    row = PUBLIC["gpqa_diamond"][0]
    answers = [DATA_SETS["gpqa_diamond"].read(i, row)["answer"] for i in range(40)]
    assert set(answers) == set("ABCD") and answers == [DATA_SETS["gpqa_diamond"].read(i, row)["answer"] for i in range(40)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".txt"])
def test_local_files_of_every_kind(tmp_path, small, suffix):
    name = "gsm8k_aug" if suffix == ".txt" else "math500"
    small(name, test=Split((), 3))
    rows = [{"problem": f"Problem {i}, \u2028 'x'", "answer": str(i)} for i in range(3)]
    file = tmp_path / f"{name}_test{suffix}"
    if suffix == ".jsonl":
        lines(file, rows)
    elif suffix == ".json":
        file.write_text(json.dumps(rows))
    elif suffix == ".txt":
        file.write_text("".join(f"{r['problem']}||<<1+1=2>> #### {r['answer']}\n" for r in rows))
    elif suffix == ".csv":
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["problem", "answer"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    records = load_records(config(tmp_path, name), "test")
    cot = "<<1+1=2>>" if suffix == ".txt" else ""
    assert records == [{**row, "cot": cot, "uid": i} for i, row in enumerate(rows)]
    assert load_records(config(tmp_path, "word_problems"), f"{name}/test") == records
    assert load_records(config(tmp_path, name, path=str(file)), "test") == records


def test_public_files_are_downloaded_converted_and_kept(tmp_path, small, monkeypatch):
    import requests
    import tensorflow_datasets as tfds

    small("aime25", test=Split(("https://x/I.jsonl", "https://x/II.jsonl"), 2))
    calls = []

    def download(self, urls):
        calls.append(urls)
        files = {}
        for split, parts in urls.items():
            files[split] = []
            for i, _ in enumerate(parts):
                files[split].append(tmp_path / f"download{i}")  # without a suffix, as tfds names them
                lines(files[split][-1], [{"question": f"P{i}", "answer": i}])
        return files

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    monkeypatch.setattr(requests, "head", lambda *_, **__: None)
    data = config(tmp_path, "aime25", path="")
    assert [(r["problem"], r["answer"]) for r in load_records(data, "test")] == [("P0", "0"), ("P1", "1")]
    assert load_records(data, "test")[1]["uid"] == 1 and len(calls) == 1


@pytest.mark.parametrize("broken", ["head", "download"])
def test_a_mirror_in_another_form_stands_in(tmp_path, small, monkeypatch, broken):
    """When the first place cannot be reached, or does not give the file; the records are those of the public form."""
    import pyarrow
    import pyarrow.parquet
    import requests
    import tensorflow_datasets as tfds

    small("gsm8k_aug", train=Split(("https://x/train.txt",), 1))
    row = {"question": " Q? ", "steps": ["<<1+2=3>>", "<<3*400=1200>>"], "answer": "1,200"}

    def refuse(url):
        if url.startswith("https://x/"):
            raise requests.ConnectionError("no route")

    def download(self, urls):
        refuse(urls["train"][0])
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "download")
        return {"train": [tmp_path / "download"]}

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    monkeypatch.setattr(requests, "head", lambda url, **_: refuse(url) if broken == "head" else None)
    (record,) = load_records(config(tmp_path, "gsm8k_aug", path=""), "train")
    assert record == {"problem": "Q?", "cot": "<<1+2=3>> <<3*400=1200>>", "answer": "1200", "uid": 0}


def test_mirrors_have_every_split_and_a_form_of_their_own():
    for name, known in DATA_SETS.items():
        for mirror in known.mirrors:
            assert set(mirror.urls) == set(known.splits) and not set(mirror.columns) <= set(PUBLIC[name][0])
            assert all(url.startswith("https://") for urls in mirror.urls.values() for url in urls)


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    import requests

    def head(*_, **__):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "head", head)
    with pytest.raises(UserError, match=r"cannot prepare math500 .*no route.*math500_<split>\.jsonl .*--data\.path"):
        load_records(config(tmp_path, "math500", path=""), "test")
    assert not list(tmp_path.rglob("*incomplete*"))


def test_other_rows_or_text_are_refused_and_changed_files_are_seen(tmp_path, small):
    rows = [{"problem": f"P{i}", "answer": str(i)} for i in range(3)]
    small("math500", test=Split((), 3, fingerprint(rows)))
    file = tmp_path / "math500_test.jsonl"
    lines(file, rows)
    assert len(load_records(config(tmp_path, "math500"), "test")) == 3
    lines(file, rows[:2])
    with pytest.raises(UserError, match=r"math500_test\.jsonl: 2 records, but math500/test has 3; .*data\.source=jsonl"):
        load_records(config(tmp_path, "math500"), "test")
    lines(file, [*rows[:2], {"problem": "other", "answer": "2"}])
    with pytest.raises(UserError, match=r"fingerprint .* but math500/test has"):
        load_records(config(tmp_path, "math500"), "test")
    lines(file, [{"problem": " p0", "answer": "0.0"}, *reversed(rows[1:])])  # typography and order aside
    assert [r["answer"] for r in load_records(config(tmp_path, "math500"), "test")] == ["0.0", "2", "1"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"problem": "p", "answer": 1}\n{"problem"', r"_test\.jsonl:2: broken JSON"),
        ('{"problem": "p"}', r"_test\.jsonl:1 has \['problem'\]; needed are"),
        ('["p"]', r"_test\.jsonl:1 is a list"),
        ('{"problem": " ", "answer": "1"}', r"_test\.jsonl:1 has no problem"),
        ('{"problem": "p", "answer": null}', r"_test\.jsonl:1 has no problem or no answer"),
        ('{"sQuestion": "p", "lSolutions": []}', r"_test\.jsonl:1 is not as multiarith publishes it"),
    ],
)
def test_broken_files_are_named(tmp_path, text, says):
    (tmp_path / "multiarith_test.jsonl").write_text(text)
    with pytest.raises(UserError, match=says):
        load_records(config(tmp_path, "multiarith"), "test")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Ann has 2 pens and gets 3.||<<2+3=5>>", "no `####` before the answer"),
        ("Q? #### 5", r"no `\|\|` between problem and chain"),
        ("Q?||<<2+3=5>>||<<2+3=5>> #### 5", r"`\|\|` is there 2 times"),
        ("Q?||<<2+3=5>> #### 5 #### 6", "`####` is there 2 times"),
        ("Q?||<<2+3=5>> ####", "no problem or no answer"),
        ("||<<2+3=5>> #### 5", "no problem or no answer"),
    ],
)
def test_lines_of_gsm8k_aug_have_all_their_parts(tmp_path, line, says):
    (tmp_path / "gsm8k_aug_valid.txt").write_text(f"Q?||<<1+1=2>> #### 2\n\n{line}\n")
    with pytest.raises(UserError, match=rf"gsm8k_aug_valid\.txt:3 .*{says}"):
        load_records(config(tmp_path, "gsm8k_aug"), "valid")


@pytest.mark.parametrize("row", [{"problem": "p"}, {"input": "p"}], ids=["ours", "public"])
@pytest.mark.parametrize(
    ("value", "says"),
    [("NaN", "is nan"), ("-Infinity", "is -inf"), ("1e999", "is inf"), ('["5"]', "is a list"), ("{}", "is a dict"), ("true", "is a bool"),
     ('"\\ud83d"', "half a character"), ("7" * 5000, "thousands of digits; write it as text"), ('1, "target": 1, "answer": 1', "is there twice")],
)  # fmt: skip
def test_gold_answers_that_are_none(tmp_path, row, value, says):
    name = "answer" if "problem" in row else "target"
    text = json.dumps(row)[:-1] + f', "{name}": {value}}}'
    (tmp_path / "gsm_hard_test.jsonl").write_text(f'{{"problem": "p", "answer": 1}}\n{text}')
    with pytest.raises(UserError, match=rf"gsm_hard_test\.jsonl:2.*{says}") as error:
        load_records(config(tmp_path, "gsm_hard"), "test")
    assert "\n" not in str(error.value)


def test_columns_that_are_there_twice(tmp_path):
    (tmp_path / "math500_test.csv").write_text("problem,answer,answer\np,1,2\n")
    with pytest.raises(UserError, match="the column 'answer' is there twice"):
        load_records(config(tmp_path, "math500"), "test")


def test_missing_splits_and_files(tmp_path, small):
    small("gsm8k", train=Split((), 1), test=Split((), 1))
    lines(tmp_path / "gsm8k_test.jsonl", [{"problem": "p", "answer": "1"}])
    assert len(load_records(config(tmp_path, "gsm8k"), "test")) == 1
    for split, says in (
        ("train", "holds no gsm8k_train file"),
        ("dev", "has no split 'dev'"),
        ("svamp/test", "holds no svamp_<split> file"),
    ):
        with pytest.raises(UserError, match=says):
            load_records(config(tmp_path, "gsm8k"), split)
    with pytest.raises(UserError, match="is a file, but gsm8k has the splits train, test"):
        load_records(config(tmp_path, "gsm8k", path=str(tmp_path / "gsm8k_test.jsonl")), "test")
    with pytest.raises(UserError, match="'nothing' is no data set"):
        load_records(config(tmp_path, "gsm8k"), "nothing/test")
    assert locate("jsonl", "sub/test") == ("jsonl", "sub/test") and locate("jsonl", "svamp/test") == ("svamp", "test")


def test_choices_have_their_own_instruction(tmp_path, small):
    assert "letter" in instruction_of("dapo_math_17k", "gpqa_diamond/test")
    assert instruction_of("jsonl", "test") == instruction_of("gsm8k", "test") == registry.INSTRUCTION
    small("gpqa_diamond", test=Split((), 1))
    lines(tmp_path / "gpqa_diamond_test.jsonl", [PUBLIC["gpqa_diamond"][0]])
    smoke = pathlib.Path(__file__).parents[2] / "experiments" / "smoke" / "llama"
    data = config(tmp_path, "gpqa_diamond", tokenizer=str(smoke), template="instruct", eos="<|eot_id|>", max_prompt=400)
    tokenizer = load_tokenizer(data)
    stream = prompt_stream(resolve(ExperimentConfig(data=data), tokenizer), tokenizer, "test", batch=1, shuffle=False)
    assert tokenizer.decode(stream.example.prompt).startswith(registry.CHOICE_INSTRUCTION)


def test_overlap_is_found_through_typography(tmp_path, small):
    small("gsm8k", train=Split((), 4), test=Split((), 3))
    train = ["Janet\u2019s ducks lay  16 eggs.", "A", "a ", "B"]
    lines(tmp_path / "gsm8k_train.jsonl", [{"problem": p, "answer": "1"} for p in train])
    lines(tmp_path / "gsm8k_test.jsonl", [{"problem": p, "answer": "1"} for p in ("janet's ducks lay 16 eggs.", "C", "B")])
    report = overlap_report(config(tmp_path, "gsm8k"), "train", ["test"])
    assert report["train"] == {"split": "train", "records": 4, "repeated": 1}
    found = report["eval"]["test"]
    assert (found["records"], found["repeated"], found["shared"]) == (3, 0, 2)
    assert [(p["train"], p["eval"]) for p in found["pairs"]] == [(0, 0), (3, 2)]
    assert "janet" in overlap_table(report)
    assert problem_hash("A") == problem_hash(" a") and normal_text("ﬁve\u00a0x") == "five x"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not on this machine")
def test_the_real_files_have_the_registered_fingerprints(tmp_path):
    counts = {}
    for name, known in DATA_SETS.items():
        for split, facts in known.splits.items():
            if facts.sha256:
                records = load_records(DataConfig(source=name, path=str(SHARED), data_dir=str(tmp_path)), split)
                counts[f"{name}/{split}"] = len(records)
                assert len(records) == facts.rows
    assert sum(counts.values()) == 13560 and len(counts) == 8
    report = overlap_report(DataConfig(source="gsm8k", path=str(SHARED), data_dir=str(tmp_path)), "train", ["test", "gsm8k_aug/valid"])
    assert report["eval"]["test"]["shared"] == 0
