"""The writers of a run: what a resume may not repeat, what a failing tracker may not do, and the real trackers, without a network."""

import json
import sqlite3
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from support import END, tiny

from lgrpo.config import LoggingConfig
from lgrpo.errors import UserError
from lgrpo.runs.metrics import MetricsWriter, read_metrics
from lgrpo.runs.writers import copies
from lgrpo.runs.writers.jsonl import SAMPLES
from lgrpo.train.samples import SampleTable
from lgrpo.types import Finish, PromptBatch, Rollout, Scored

ROWS = [{"prompt": "3 | 4", "thought": "so:0.62 the:0.21\nx", "correct": True}]


def write(folder, cfg, steps, resume=0, first=None):
    with MetricsWriter(folder, cfg, resume, first=first, name="mine", config={"seed": 3}) as writer:
        for step in steps:
            writer.write(step, {"reward/mean": step / 4, "grad/norm": float("nan")}, ROWS if step == 2 else ())


@pytest.fixture
def tracker(monkeypatch):
    """A tracker that remembers, in place of wandb: (list of (id, first step after), list of (id, step, numbers))."""
    seen = SimpleNamespace(opened=[], steps=[])

    class Fake:
        def open(self, run):
            self.id = run.id
            seen.opened.append((run.id, run.step, run.name))

        def write(self, entry):
            seen.steps.append((self.id, entry.step))

        def close(self):
            pass

    monkeypatch.setitem(copies.TRACKERS, "wandb", Fake)
    monkeypatch.setattr(copies.importlib.util, "find_spec", lambda name: name)
    return seen


COPY = LoggingConfig(tensorboard=False, wandb=True)


def test_a_resumed_run_goes_on_in_its_tracker_run_and_sends_no_step_twice(tmp_path, tracker):
    folder = tmp_path / "w"
    write(folder, COPY, range(1, 6))
    write(folder, COPY, range(3, 8), resume=2)  # killed after step 5, the newest checkpoint is that of step 2
    (id_,) = {id_ for id_, *_ in tracker.opened}
    assert tracker.opened == [(id_, 0, "mine-w"), (id_, 2, "mine-w")]
    assert tracker.steps == [(id_, step) for step in range(1, 8)]
    assert [row["step"] for row in read_metrics(folder)] == list(range(1, 8)), "the record has them from the later process"


def test_a_run_that_went_back_to_change_its_course_begins_a_new_tracker_run(tmp_path, tracker):
    write(tmp_path, COPY, range(1, 6))
    write(tmp_path, COPY, range(3, 5), resume=2, first={"run/rollback": 2.0})
    write(tmp_path, COPY, range(5, 6), resume=4)
    (old, *_), (new, *_), (again, *_) = tracker.opened
    assert old != new == again
    assert [step for id_, step in tracker.steps if id_ == new] == [3, 4, 5]


def test_a_tracker_that_comes_later_gets_the_steps_from_there_on(tmp_path, tracker):
    write(tmp_path, LoggingConfig(tensorboard=False), range(1, 6))
    write(tmp_path, COPY, range(3, 5), resume=2)
    assert [step for _, step in tracker.steps] == [3, 4]


@pytest.mark.parametrize("bad", ["{", '["wandb"]'])
def test_a_broken_table_of_tracker_runs_is_one_line(tmp_path, tracker, bad):
    (tmp_path / copies.IDS).write_text(bad)
    with pytest.raises(UserError, match=r"trackers\.json: not a table of tracker runs .*; remove it"):
        write(tmp_path, COPY, [])


def test_a_tracker_that_is_not_installed_is_a_mistake_in_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(copies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"logging\.trackio=True: .*pip install 'lgrpo\[trackio\]'"):
        write(tmp_path, LoggingConfig(trackio=True), [])


@pytest.mark.parametrize("method", ["open", "write", "close"])
def test_a_failing_tracker_costs_one_line(tmp_path, tracker, monkeypatch, capsys, method):
    def fail(self, *_):
        raise ConnectionError("no route to host\nmore of it")

    monkeypatch.setattr(copies.TRACKERS["wandb"], method, fail)
    write(tmp_path, COPY, range(1, 5))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert capsys.readouterr().err.splitlines() == [
        "warning: wandb is left out from here on, metrics.jsonl goes on: ConnectionError: no route to host"
    ]


def test_a_tracker_that_hangs_is_left_behind(tmp_path, tracker, monkeypatch, capsys):
    release = threading.Event()
    monkeypatch.setattr(copies.TRACKERS["wandb"], "write", lambda self, entry: release.wait(60))
    monkeypatch.setattr(copies, "PATIENCE", 0.05)
    monkeypatch.setattr(copies, "_WAITING", 4)
    write(tmp_path, COPY, range(1, 4))
    assert "not done 0.05 s after the end" in capsys.readouterr().err
    write(tmp_path / "long", COPY, range(1, 20))
    assert capsys.readouterr().err.count("warning") == 1
    assert len(read_metrics(tmp_path / "long")) == 19
    release.set()


def test_tables_are_in_the_record_and_in_tensorboard(tmp_path, monkeypatch):
    import tensorboardX

    texts = []
    monkeypatch.setattr(tensorboardX.SummaryWriter, "add_text", lambda self, *args: texts.append(args))
    write(tmp_path, LoggingConfig(), range(1, 4))
    write(tmp_path, LoggingConfig(), range(2, 4), resume=1)
    assert read_metrics(tmp_path / SAMPLES) == [{"step": 2, "samples": ROWS}]
    table = "| prompt | thought | correct |\n| --- | --- | --- |\n| `3 \\| 4` | `so:0.62 the:0.21\\nx` | `True` |"
    assert texts == [("samples", table, 2)] * 2


def test_a_table_without_numbers_makes_no_line_of_metrics(tmp_path):
    with MetricsWriter(tmp_path, LoggingConfig(tensorboard=False), first={"run/rollback": 1.0}) as writer:
        writer.write(1, {}, ROWS)
        writer.write(2, {"reward/mean": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path / SAMPLES)] == [1]
    assert read_metrics(tmp_path) == [{"step": 2, "reward/mean": 1.0, "run/rollback": 1.0}]


def wandb_records(path):
    """Records of an offline run: a log of LevelDB's format behind seven bytes, in blocks of 32 KiB; 1 is a whole record, 4 the end of one."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + 7 + size > len(data):  # still being written
            return
        part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


def offline_runs(folder):
    """({(project, run)}, [(step, reward, whether there is a gradient's norm, a table)])."""
    ids, steps = set(), []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "run":
                ids.add((record.run.project, record.run.run_id))
            if record.WhichOneof("record_type") == "history":
                items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                steps.append((record.history.step.num, float(items["reward/mean"]), "grad/norm" in items, "samples.nrows" in items))
    return ids, steps


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(tmp_path, COPY, range(1, 4))
    write(tmp_path, COPY, range(2, 6), resume=1)
    end = time.monotonic() + 30  # its service closes the file after it has told us that it is done
    while len(offline_runs(tmp_path)[1]) < 5 and time.monotonic() < end:
        time.sleep(0.2)
    ids, steps = offline_runs(tmp_path)
    assert ids == {("lgrpo", json.loads((tmp_path / copies.IDS).read_text())["wandb"])}
    assert steps == [(step, step / 4, False, step == 2) for step in range(1, 6)]


def test_trackio(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "board"))
    if "trackio" in sys.modules:
        pytest.skip("trackio reads TRACKIO_DIR once a process")
    pytest.importorskip("trackio")
    cfg = LoggingConfig(tensorboard=False, trackio=True, project="mine")
    write(tmp_path / "w", cfg, range(1, 4))
    write(tmp_path / "w", cfg, range(2, 6), resume=1)
    base = sqlite3.connect(tmp_path / "board" / "mine.db")
    found = base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert {name for name, *_ in found} == {f"mine-w-{json.loads((tmp_path / 'w' / copies.IDS).read_text())['trackio']}"}
    numbers = [(step, json.loads(line)) for _, step, line in found]
    assert [(step, line["reward/mean"]) for step, line in numbers] == [(step, step / 4) for step in range(1, 6)]
    assert [step for step, line in numbers if "samples" in line] == [2]
    assert capsys.readouterr().out == "", "stdout is for results"


class Words:
    """A tokenizer whose words are numbers."""

    def token_of(self, token):
        return None if token == 23 else f"w{token}"

    def decode(self, ids):
        return " ".join(map(str, ids))

    def decode_batch(self, rows):
        return [self.decode(row) for row in rows]

    def encode(self, text):
        return [END]


def test_a_table_of_completions_says_what_was_thought_and_what_came_of_it(monkeypatch):
    """One prompt of two, its group of two: one that thought in latents and answered, one explicit chain that never ended."""
    cfg = tiny(logging__samples_every=2, rollout__group_size=2)
    ids = np.zeros((4, 5, 4), np.int32)
    ids[0, :, 0] = [7, 9, END, 11, 2]
    ids[0, 0] = [7, 8, 23, 5]
    ids[1, :, 0] = [4, 5, 6, 7, 8]
    weights = np.zeros(ids.shape, np.float32)
    weights[0, 0], weights[0, 1] = [0.1, 0.5, 0.3, 0.1], [1, 0, 0, 0]
    latent = np.zeros((4, 5), bool)
    latent[0, :2] = True
    blank = np.zeros((4, 5), np.float32)
    finish = np.array([Finish.EOS, Finish.LENGTH, Finish.EOS, Finish.EOS])
    chain, whole = np.array([2, 5, 0, 0]), np.ones((4, 5), bool)
    rollout = Rollout(ids, blank, weights, latent, whole, whole, blank, finish, chain, chain == 2)
    scored = Scored(np.array([1.0, 0.0, 0.5, 0.5], np.float32), np.array([True, False, False, False]), finish == Finish.EOS)
    prompts = PromptBatch(np.array([[0, 4, 5], [6, 7, 8]]), np.array([[False, True, True], [True] * 3]), np.array([0, 1]))
    monkeypatch.setattr("lgrpo.rewards.score.prompts.think_end_ids", lambda data, tokenizer: [END])
    table = SampleTable(cfg, Words())
    table.take(1, prompts, rollout, ["11", "12"], scored)
    assert table.pop() == []
    table.take(2, prompts, rollout, ["11", "12"], scored)
    table.take(2, prompts, rollout, ["13", "14"], scored)  # a further generation of the same step
    first, second = table.pop()
    assert table.pop() == []
    assert first == {
        "prompt": "4 5",
        "gold": "11",
        "thought": "w8:0.50 #23:0.30 w7:0.10 | w9:1.00 w0:0.00 w0:0.00",
        "answer": "11",
        "reward": 1.0,
        "correct": True,
        "valid": True,
        "finish": "EOS",
        "latent_steps": 2,
    }
    assert (second["thought"], second["answer"], second["finish"], second["latent_steps"]) == ("4 5 6 7 8", "", "LENGTH", 0)
