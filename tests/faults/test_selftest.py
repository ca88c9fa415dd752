"""The command that users run to see that their machine resumes exactly; and that it finds a difference where there is one."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from flags import flags

from lgrpo.runs import storage
from lgrpo.selftest import kills, same

STEP = {"step": 1, "policy/loss": 0.5, "reward/mean": 0.25}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """(finished process, workdir) of two kills on a mesh of two by two."""
    workdir = tmp_path_factory.mktemp("selftest") / "runs"
    command = [
        sys.executable,
        "-m",
        "lgrpo",
        "selftest",
        "resume",
        "--kills",
        "2",
        "--steps",
        "6",
        "--fsdp",
        "2",
        "--workdir",
        str(workdir),
    ]
    env = os.environ | {"XLA_FLAGS": flags(4)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=550, check=False), workdir


def test_two_kills(result):
    done, _ = result
    last = done.stdout.splitlines()[-1]
    assert (done.returncode, last) == (0, f"{last.split()[0]} passed, 0 failed"), done.stdout + done.stderr
    assert int(last.split()[0]) >= 4  # two kills, and metrics and final state of at least one run
    assert "FAILED" not in done.stdout


def test_two_kills_in_a_bucket(result, bucket, monkeypatch):
    """Against the run on the disk. At each kill: no half line, and no checkpoint without its lines or fewer of them than at the kill before."""
    _, workdir = result
    monkeypatch.setenv("XLA_FLAGS", flags(4))
    tally, told = kills.Tally(), []
    job = kills.Job(("--steps", "6", "--fsdp", "2"), workdir)
    expect, seed = same.lines(workdir / "whole"), 7
    kills.kill_loop(job, workdir / "whole", expect, bucket, tally, rng=random.Random(seed), kills=2, out=told.append)
    assert sum(tally.kills.values()) == 2 and tally.passed >= 4 and not tally.failures, f"seed {seed}\n" + "\n".join(told)


def test_what_a_kill_may_not_lose(bucket):
    storage.write_text(bucket / "checkpoints" / "2" / "commit_success.txt", "")
    storage.write_text(bucket / "checkpoints" / "4" / "array", "written, and not whole")
    storage.write_text(bucket / "metrics.jsonl", '{"step": 1}\n{"step": 2}\n')
    assert (same.saved(bucket), same.lost(bucket, 2), same.leftovers(bucket)) == ([2], "", "")
    assert same.lost(bucket, 4) == "the newest checkpoint is that of step 2, and that of step 4 was there before"
    storage.write_text(bucket / "metrics.jsonl", '{"step": 1}\n{"step')
    assert same.lost(bucket, 2).startswith("half a line in metrics.jsonl")
    storage.write_text(bucket / "metrics.jsonl", '{"step": 1}\n')
    assert same.lost(bucket, 2) == "a checkpoint of step 2 with 1 lines of metrics"
    storage.write_text(bucket / "tensorboard" / "events.part", "")
    assert same.leftovers(bucket) == "left over: tensorboard/events.part"
    storage.write_text(bucket / "unreadable" / "1" / "array", "")
    assert "unreadable/1/array" in same.lost(bucket, 2)


def test_a_changed_bit_of_the_state_is_a_difference(result, tmp_path):
    _, workdir = result
    shutil.copytree(workdir / "whole", tmp_path / "parts", ignore=shutil.ignore_patterns("checkpoints"))
    assert same.compare_final(workdir / "whole", tmp_path / "parts") == ""
    final = json.loads((tmp_path / "parts" / "final.json").read_text())
    name = next(n for n in final["state"] if "embed" in n)
    final["state"][name] = "0" * 64
    (tmp_path / "parts" / "final.json").write_text(json.dumps(final))
    assert name in same.compare_final(workdir / "whole", tmp_path / "parts")


def test_the_job_uses_what_a_checkpoint_must_hold(result):
    """Otherwise the test would pass without testing: surplus groups in the buffer, several generations in a step, weights that move."""
    rows = same.lines(result[1] / "whole")
    assert sum(row["dynamic/buffered"] for row in rows) > 0
    assert max(row["dynamic/rounds"] for row in rows) > 1
    assert max(row["grad/norm"] for row in rows) > 0
    assert any("eval/pass@1" in row for row in rows)


@pytest.mark.parametrize(
    ("parts", "finished", "said"),
    [
        ([STEP], False, ""),
        ([STEP], True, "1 lines of metrics instead of 2"),
        ([STEP, STEP | {"step": 2}], True, ""),
        ([STEP, STEP | {"step": 2, "reward/mean": 0.5}], False, "step 2: reward/mean is 0.5 instead of 0.25"),
        ([STEP, STEP | {"step": 2}, STEP | {"step": 3}], False, "3 lines of metrics instead of 2"),
        ([{"step": 1}], False, "step 1: policy/loss is None instead of 0.5, reward/mean is None instead of 0.25"),
    ],
)
def test_differences_of_metrics(parts, finished, said):
    assert same.compare_lines([STEP, STEP | {"step": 2}], parts, finished=finished) == said
