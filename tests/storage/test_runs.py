"""A run whose everything lies in a bucket is the run on a disk: killed and gone on with, evaluated, reported, exported, imported again."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
from emulator import BUCKET
from invariants.test_resume import STEPS, assert_same, config, final_state, lines, lucky
from multihost.worlds import MAIN, write_experiment

from lgrpo.__main__ import run as command
from lgrpo.config.overrides import to_json
from lgrpo.runs import storage
from lgrpo.runs.checkpoint import saved_config, saved_step
from lgrpo.runs.metrics import read_metrics
from lgrpo.train import rl


def configured(data_dir):
    cfg = config(data_dir)
    evaluation = dataclasses.replace(cfg.evaluation, problems=8, batch=8, samples=2, bootstrap=20)
    return dataclasses.replace(cfg, evaluation=evaluation, logging=dataclasses.replace(cfg.logging, tensorboard=True))


@pytest.fixture(scope="module")
def runs(emulator, tmp_path_factory):
    """(a workdir on the disk, one in the bucket, its experiment) of the same run; the second was killed in the middle."""
    here, data = tmp_path_factory.mktemp("runs"), f"gs://{BUCKET}/data"
    there, objects = f"gs://{BUCKET}/runs/killed", emulator.folder / BUCKET / "runs" / "killed"
    experiment = write_experiment(here, data, "storage.test_runs", "configured")
    train = [sys.executable, str(MAIN), "train", str(experiment), "--workdir", there]  # with the lucky grader
    env = os.environ | {"PYTHONPATH": str(MAIN.parents[2]), "HOME": str(here / "theirs")}
    with (here / "log").open("w") as log:
        killed = subprocess.Popen(train, env=env, stdout=log, stderr=log)
    with pytest.MonkeyPatch.context() as patch:
        lucky(patch)
        patch.setenv("HOME", str(here / "mine"))
        until = time.monotonic() + 200
        while not (objects / "checkpoints" / "2" / "commit_success.txt").exists():
            assert killed.poll() is None and time.monotonic() < until, (here / "log").read_text()[-3000:]
            time.sleep(0.01)
        killed.kill()
        killed.wait()
        record = (objects / "metrics.jsonl").read_text()
        assert record.endswith("\n") and record.count("\n") >= 2, "a checkpoint without the lines before it"
        cfg = configured(data)
        assert rl.run(cfg, there) == 0
        assert rl.run(cfg, here / "disk") == 0
        yield here / "disk", storage.place(there), experiment


def test_metrics_and_state_are_the_same(runs):
    disk, bucket, _ = runs
    assert [row["step"] for row in read_metrics(bucket)] == list(range(1, STEPS + 1))
    assert lines(bucket) == lines(disk) and read_metrics(bucket / "samples.jsonl") == read_metrics(disk / "samples.jsonl")
    cfg = configured(f"gs://{BUCKET}/data")
    for mine, theirs in zip(final_state(cfg, bucket, is_rl=True), final_state(cfg, disk, is_rl=True), strict=True):
        assert_same(mine, theirs)
    assert json.loads(storage.text_of(bucket / "config.json"))["config"] == json.loads((disk / "config.json").read_text())["config"]
    assert [name for name in storage.files_below(bucket / "tensorboard") if name.startswith("events")]
    left = {name.split("/")[0] for name in storage.files_below(bucket)}
    assert left == {"checkpoints", "config.json", "metrics.jsonl", "samples.jsonl", "tensorboard"}, "parts, locks or temporary files stayed"


def test_prepared_data_is_shared(runs, tmp_path, monkeypatch):
    """A host that has none fetches what the bucket has; none prepares again."""
    from lgrpo.data import sources
    from lgrpo.data.builders.word_problems.word_problems_dataset_builder import Builder

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Builder, "download_and_prepare", None)
    records = sources.load_records(configured(f"gs://{BUCKET}/data").data, "train[:3]")
    assert [record["uid"] for record in records] == [0, 1, 2]


def test_evaluated_compared_and_reported(runs, tmp_path, capsys):
    disk, bucket, experiment = runs
    for workdir in (disk, bucket):
        assert command(["eval", str(experiment), "--workdir", str(workdir)]) == 0
    assert storage.text_of(bucket / "eval" / "eval.jsonl") == (disk / "eval" / "eval.jsonl").read_text()
    assert command(["check", str(experiment), "--fast", "--workdir", str(bucket)]) == 0
    assert f"weights: step {STEPS} of {bucket}" in capsys.readouterr().err
    assert command(["compare", str(disk), str(bucket)]) == 0
    assert "differ in more" not in capsys.readouterr().out
    assert command(["report", str(bucket), "--out", str(bucket.parent / "page.html")]) == 0
    page = storage.text_of(bucket.parent / "page.html")
    assert "reward/mean" in page and str(bucket) not in storage.files_below(bucket.parent / "page_figures")
    assert any(name.endswith(".png") for name in storage.files_below(bucket.parent / "page_figures"))
    assert command(["ask", str(bucket), "Sam has 3 pens . How many pens ?"]) == 0
    assert f"{bucket}, step {STEPS}" in capsys.readouterr().out.replace("\n", "")


def test_exported_and_imported(runs, tmp_path):
    disk, bucket, _ = runs
    assert command(["export-hf", str(disk), str(tmp_path / "hf")]) == 0
    assert command(["export-hf", str(bucket), str(bucket.parent / "hf")]) == 0
    same = [name for name in storage.files_below(tmp_path / "hf") if name != "README.md"]
    assert [name for name in storage.files_below(bucket.parent / "hf") if name != "README.md"] == same
    for name in same:
        assert (bucket.parent / "hf" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name
    again = bucket.parent / "imported"
    assert command(["import-hf", str(bucket.parent / "hf"), "--workdir", str(again)]) == 0
    cfg = saved_config(again)
    assert cfg.data.tokenizer == f"{again}/hf" and saved_step(again) == 0
    assert to_json(cfg)["model"] == to_json(saved_config(bucket))["model"]
    assert command(["ask", str(again), "Sam has 3 pens . How many pens ?", "--data.template", "plain"]) == 0
