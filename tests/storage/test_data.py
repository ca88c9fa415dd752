"""Records, labels and tokenizers that lie in a bucket."""

import csv
import io

import numpy as np
import pytest

from lgrpo.__main__ import run as command
from lgrpo.config import DataConfig, GymConfig
from lgrpo.data import gym, labels
from lgrpo.data.prompts import load_tokenizer
from lgrpo.data.rows import read_rows
from lgrpo.data.sources import load_records
from lgrpo.errors import UserError
from lgrpo.runs import storage

LINE = '{"problem": "p", "cot": "", "answer": "2"}\n'


def test_lines_of_json(bucket):
    data = DataConfig(source="jsonl", path=str(bucket))
    with pytest.raises(UserError, match=r"gs://.*/train\.jsonl does not exist \(no such folder\)"):
        load_records(data, "train")
    storage.write_bytes(bucket / "train.jsonl", b"\xef\xbb\xbf" + 2 * LINE.encode())
    assert [record["answer"] for record in load_records(data, "train")] == ["2", "2"]
    storage.write_text(bucket / "test.jsonl", LINE + "{")
    with pytest.raises(UserError, match=r"gs://.*/test\.jsonl:2: broken JSON"):
        load_records(data, "test")


def test_other_kinds_of_files(bucket):
    import pyarrow
    import pyarrow.parquet as parquet

    rows = [{"problem": "a,\nb", "answer": "1"}, {"problem": "c", "answer": "2"}]
    text, packed = io.StringIO(newline=""), io.BytesIO()
    writer = csv.DictWriter(text, ["problem", "answer"])
    writer.writeheader()
    writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), packed)
    storage.write_text(bucket / "x.csv", text.getvalue())
    storage.write_bytes(bucket / "x.parquet", packed.getvalue())
    for name in ("x.csv", "x.parquet"):
        assert [row for _, row in read_rows(bucket / name, f".{name[2:]}")] == rows


def test_a_tokenizer_and_examples(bucket):
    with pytest.raises(UserError, match=r"data\.tokenizer: gs://.*/none does not exist"):
        load_tokenizer(DataConfig(tokenizer=f"{bucket}/none"))
    storage.write_text(bucket / "hf" / "tokenizer.json", load_tokenizer(DataConfig()).inner.to_str())
    found = load_tokenizer(DataConfig(tokenizer=f"{bucket}/hf"))
    assert found.vocabulary == load_tokenizer(DataConfig()).vocabulary and "lgrpo-bucket" not in found.name


def test_labels_count_once_they_are_whole(bucket, monkeypatch):
    arrays = {"uid": np.arange(2), "ids": np.zeros((2, 1, 1)), "probs": np.ones((2, 1, 1))}
    labels.write_labels(bucket / "train", {"split": "train"}, **arrays)
    assert labels.read_manifest(bucket / "train")["split"] == "train"
    monkeypatch.setattr(storage, "write_text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        labels.write_labels(bucket / "train", {"split": "train"}, **arrays)
    assert labels.read_manifest(bucket / "train") is None


def test_generated_problems_are_kept_and_fetched(bucket, tmp_path, monkeypatch):
    """The second host makes none."""
    made = []
    record = {"problem": "p", "cot": "<<1+1=2>>", "answer": "2", "solution": "1+1=2"}

    def generate(settings):
        made.append(settings)
        return {"reasoning_gym": "1"}, {"train": [record]}

    monkeypatch.setattr(gym, "generate", generate)
    for host in ("one", "two"):
        monkeypatch.setenv("HOME", str(tmp_path / host))
        data = DataConfig(source="reasoning_gym", gym=GymConfig(), data_dir=str(bucket))
        assert load_records(data, "train") == [record | {"uid": 0}]
        assert list((tmp_path / host).rglob("*.array_record*"))
    assert len(made) == 1
    folder = f"gsm_symbolic-{gym.digest(GymConfig())}"
    names = ["dataset_info.json", "features.json", "metadata.json", "reasoning_gym-train.array_record-00000-of-00001"]
    assert storage.files_below(bucket / "reasoning_gym" / folder) == [f"1.0.0/{name}" for name in names]


def test_what_wants_a_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs://bucket/x: give a folder of this machine"):
        command(["init", "gs://bucket/x"])
    with pytest.raises(UserError, match="gs://bucket/x: give a folder of this machine"):
        gym.write(gym.Gym(out="gs://bucket/x"))
    assert list(tmp_path.iterdir()) == []
