"""Problems of reasoning-gym: what is kept of a worked solution, and splits that share nothing."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from fractions import Fraction

import pytest

from lgrpo.config import DataConfig, ExperimentConfig, GymConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.validate import validate
from lgrpo.data import gym
from lgrpo.data.equations import extract, value
from lgrpo.data.gym import Gym, write
from lgrpo.data.sources import load_records
from lgrpo.errors import UserError


@pytest.mark.parametrize(
    ("problem", "solution", "answer", "equations"),
    [
        ("He has 35 and 3 times as many.", "He has 35 × 3 = 105 kiwi. Total: 105 + 35 = 140\n", "140", ["35*3=105", "105+35=140"]),
        ("16 eggs, 3 and 4 are used, $2 each.", "Left: (16 - 3 - 4) = 9. She makes 9*$2=$18.", "18", ["(16-3-4)=9", "9*2=18"]),
        ("1,200 a year", "1,200/12=100 a month.", "100", ["1200/12=100"]),
        ("5 and 3", "(5+3)*2=16", "16", ["(5+3)*2=16"]),
        ("0.5 of 7", "7*0.5=3.5", "3.5", ["7*0.5=3.5"]),
    ],
)
def test_equations_of_a_solution(problem, solution, answer, equations):
    assert extract(problem, solution, answer) == (equations, "")


@pytest.mark.parametrize(
    ("problem", "solution", "answer", "reason"),
    [
        ("5 and 3", "It is 8.", "8", "no equation"),
        ("5 and 3", "8=8", "8", "no equation"),
        ("5 and 3", "5+3=9 and 5+3=8", "8", "false equation"),
        ("10 and 3", "10/3=3.33", "3.33", "false equation"),
        ("5 and 0", "5/0=5", "5", "false equation"),
        ("5 and 3", "5+3=8, 8-3=5", "8", "other result"),
        ("5 and 3", "5+3=8", "eight", "other result"),
        ("160 mails, 30% of them", "48=48, so 160-48=112", "112", "missing step"),
    ],
)
def test_solutions_that_are_dropped(problem, solution, answer, reason):
    assert extract(problem, solution, answer) == ([], reason)


def test_only_arithmetic_has_a_value():
    assert value("2+3*4/(1+1)") == Fraction(8)
    assert [value(text) for text in ("2**3", "__import__('os')", "1/0", "2+", "a", "True+1")] == [None] * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("reasoning_gym")
    out = tmp_path_factory.mktemp("gym") / "gsm"
    write(Gym(out=str(out), chains="equations", steps=(1, 3), train=300, valid=40, test=60, held_out=20))
    return out


def test_chains_hold_and_give_the_answer(folder):
    data = DataConfig(source="jsonl", path=str(folder))
    for split, count in {"train": 300, "valid": 40, "test": 60, "held_out": 60}.items():
        records = load_records(data, split)
        assert len(records) == count
        for record in records:
            sides = [equation.split("=") for equation in record["cot"][2:-2].split(">> <<")]
            assert 1 <= len(sides) <= 3
            assert all(value(left) == Fraction(right) for left, right in sides)
            assert Fraction(sides[-1][1]) == Fraction(record["answer"])
            found, _ = extract(record["problem"], record["solution"], record["answer"])
            assert record["cot"] == " ".join(f"<<{equation}>>" for equation in found)


def test_splits_share_no_problem_and_the_held_out_templates_stay_out(folder):
    rows = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}
    problems = [row["problem"] for split in rows.values() for row in split]
    assert len(set(problems)) == len(problems) == 460
    about = json.loads((folder / "dataset.json").read_text())
    templates = {split: {row["template"] for row in found} for split, found in rows.items()}
    assert len(about["held_out_templates"]) == 20
    assert templates["held_out"] <= set(about["held_out_templates"])
    assert not (templates["train"] | templates["valid"] | templates["test"]) & set(about["held_out_templates"])
    assert sum(about["splits"]["train"]["dropped"].values()) > 0


def test_the_same_again_is_left_and_other_settings_are_refused(folder, tmp_path):
    cfg = Gym(out=str(folder), chains="equations", steps=(1, 3), train=300, valid=40, test=60, held_out=20)
    before = (folder / "train.jsonl").stat().st_mtime_ns
    write(cfg)
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other settings"):
        write(dataclasses.replace(cfg, seed=1))
    write(dataclasses.replace(cfg, out=str(tmp_path / "again")))
    assert (tmp_path / "again" / "train.jsonl").read_bytes() == (folder / "train.jsonl").read_bytes()


SETTINGS = GymConfig(chains="equations", steps=(1, 3), train=300, valid=40, test=60, held_out=20)


def test_the_source_makes_its_problems_once_and_is_the_folder(folder, tmp_path, monkeypatch):
    data = DataConfig(source="reasoning_gym", gym=SETTINGS, data_dir=str(tmp_path))
    lines = DataConfig(source="jsonl", path=str(folder))
    assert load_records(data, "held_out") == load_records(lines, "held_out")
    monkeypatch.setattr(gym, "generate", None)  # what is there is not made again, nor for another split
    for split in ("train", "valid", "test"):
        assert load_records(data, split) == load_records(lines, split)
    with pytest.raises(
        UserError, match="split 'dev' of reasoning_gym/gsm_symbolic does not exist; choose one of held_out, test, train, valid"
    ):
        load_records(data, "dev")


def test_the_builder_keeps_what_was_dropped_and_why(folder, tmp_path):
    from lgrpo.data.builders.reasoning_gym.reasoning_gym_dataset_builder import Builder

    load_records(DataConfig(source="reasoning_gym", gym=SETTINGS, data_dir=str(tmp_path)), "test")
    again = Builder(settings=SETTINGS, data_dir=str(tmp_path), file_format="array_record")
    assert dict(again.info.metadata) == json.loads((folder / "dataset.json").read_text())
    assert {split: found.num_examples for split, found in again.info.splits.items()} == {
        "train": 300,
        "valid": 40,
        "test": 60,
        "held_out": 60,
    }
    other = Builder(settings=dataclasses.replace(SETTINGS, seed=1), data_dir=str(tmp_path), file_format="array_record")
    assert not other.data_path.exists()


def test_damaged_data_is_one_line(tmp_path):
    pytest.importorskip("reasoning_gym")
    settings = GymConfig(dataset="chain_sum", train=20, valid=5, test=5)
    data = DataConfig(source="reasoning_gym", gym=settings, data_dir=str(tmp_path))
    assert len(load_records(data, "train")) == 20
    (damaged,) = tmp_path.rglob("*train.array_record*")
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(UserError, match="remove that folder and it is prepared again"):
        load_records(data, "train")


def test_a_preparation_that_fails_leaves_nothing(tmp_path):
    pytest.importorskip("reasoning_gym")
    settings = GymConfig(chains="equations", steps=(50, 60), train=2, valid=1, test=1)
    with pytest.raises(UserError, match="only 0 of 1"):
        load_records(DataConfig(source="reasoning_gym", gym=settings, data_dir=str(tmp_path)), "train")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_of_two_processes_that_make_the_same_the_second_takes_what_the_first_made(tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym")
    cfg, made = Gym(out=str(tmp_path / "sums"), dataset="chain_sum", train=20, valid=5, test=5), pathlib.Path.rename

    def slower(self, target):
        monkeypatch.setattr(pathlib.Path, "rename", made)
        write(cfg)
        made(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", slower)
    assert write(cfg)["splits"]["train"]["records"] == 20
    assert [path.name for path in tmp_path.iterdir()] == ["sums"]
    with pytest.raises(UserError, match=r"other settings .*choose another folder"):
        write(dataclasses.replace(cfg, seed=3))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.gym.params": "[1]"}, r"data\.gym\.params='\[1\]': give a JSON object"),
        ({"data.gym.steps": (3, 2)}, r"data\.gym\.steps=\(3, 2\): give the fewest"),
        ({"data.gym.dataset": "chain_sum", "data.gym.held_out": 1}, r"data\.gym\.dataset='chain_sum': only gsm_symbolic"),
        ({"data.gym.train": 0}, r"data\.gym\.train=0"),
    ],
)
def test_settings_are_checked_before_anything_is_made(changes, says):
    cfg = apply_diff(ExperimentConfig(), {"data.source": "reasoning_gym"} | changes)
    assert [line for line in validate(cfg, device_count=8, kind="train") if re.search(says, line)]


def test_any_data_set_with_answers_in_text(tmp_path):
    pytest.importorskip("reasoning_gym")
    write(Gym(out=str(tmp_path / "sums"), dataset="chain_sum", params='{"min_terms": 2, "max_terms": 3}', train=20, valid=5, test=5))
    records = load_records(DataConfig(source="jsonl", path=str(tmp_path / "sums")), "train")
    assert len(records) == 20 and all(r["answer"] and not r["cot"] for r in records)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"dataset": "chain_summ"}, "chain_summ"),
        ({"params": "{"}, "give a JSON object"),
        ({"params": '{"seed": 3}'}, "settings of their own"),
        ({"params": '{"nonsense": 3}'}, "nonsense"),
        ({"dataset": "chain_sum", "chains": "prose"}, "only gsm_symbolic"),
        ({"templates": (12345,)}, "no template 12345"),
        ({"held_out": 500}, "hold out fewer"),
        ({"steps": (3, 2)}, "fewest"),
        ({"chains": "equations", "steps": (50, 60), "test": 1}, "only 0 of 1"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, fields, says):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=says):
        write(Gym(out=str(tmp_path / "out"), **fields))
    assert not list(tmp_path.iterdir())
