"""metrics.jsonl is the record of a run: what a kill may do to it, and what it must refuse."""

import json
import os

import numpy as np
import pytest

from lgrpo.config import LoggingConfig
from lgrpo.errors import UserError
from lgrpo.runs import metrics
from lgrpo.runs.metrics import MetricsWriter, read_metrics, summary_table

PLAIN = LoggingConfig(tensorboard=False)


def lines(folder):
    return (folder / metrics.FILE).read_text().splitlines()


def test_lines_are_on_disk_before_close(tmp_path):
    writer = MetricsWriter(tmp_path, PLAIN, 0)
    writer.write(1, {"reward/mean": np.float32(0.5), "eval/pass@4": 1})
    assert [json.loads(x) for x in lines(tmp_path)] == [{"step": 1, "reward/mean": 0.5, "eval/pass@4": 1.0}]
    writer.close()


def test_nonfinite_values_stay_valid_json_and_are_told_apart(tmp_path):
    with MetricsWriter(tmp_path, PLAIN, 0) as writer:
        writer.write(1, {"grad/norm": float("nan"), "policy/ratio_max": float("inf"), "policy/loss": float("-inf"), "reward/mean": 0.0})
    row = json.loads(lines(tmp_path)[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["grad/norm"] is None
    assert row["nonfinite"] == {"grad/norm": "nan", "policy/ratio_max": "inf", "policy/loss": "-inf"}
    assert row["reward/mean"] == 0.0


def test_undeclared_names_are_refused_and_nothing_is_written(tmp_path):
    with MetricsWriter(tmp_path, PLAIN, 0) as writer, pytest.raises(ValueError, match="reward/meen"):
        writer.write(1, {"reward/mean": 0.0, "reward/meen": 1.0})
    assert lines(tmp_path) == []


def test_resume_drops_later_lines_and_a_half_written_one(tmp_path):
    with MetricsWriter(tmp_path, PLAIN, 0) as writer:
        for step in range(1, 6):
            writer.write(step, {"reward/mean": step})
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('{"step": 6, "rew')
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    with MetricsWriter(tmp_path, PLAIN, 3) as writer:
        assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]
        writer.write(4, {"reward/mean": 40})
        assert [(r["step"], r["reward/mean"]) for r in writer.read()] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_line_cut_exactly_before_its_newline_does_not_swallow_the_next(tmp_path):
    (tmp_path / metrics.FILE).write_text('{"step": 1, "reward/mean": 1}\n{"step": 2, "reward/mean": 2}')
    with MetricsWriter(tmp_path, PLAIN, 2) as writer:
        writer.write(3, {"reward/mean": 3})
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_crash_while_rewinding_keeps_the_old_file(tmp_path, monkeypatch):
    with MetricsWriter(tmp_path, PLAIN, 0) as writer:
        writer.write(1, {"reward/mean": 1})
        writer.write(2, {"reward/mean": 2})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        MetricsWriter(tmp_path, PLAIN, 1)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("bad", ["{broken", "[1, 2]", '{"reward/mean": 1}', '{"step": "x"}'])
def test_damage_in_the_middle_is_reported_not_skipped(tmp_path, bad):
    (tmp_path / metrics.FILE).write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line of metrics .*; remove it"):
        read_metrics(tmp_path)


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.multihost, "is_main", lambda: False)
    with MetricsWriter(tmp_path, PLAIN, 0) as writer:
        writer.write(1, {"reward/mean": 1})
        with pytest.raises(ValueError, match="bogus"):
            writer.write(1, {"bogus": 1})
    assert not (tmp_path / metrics.FILE).exists()


def test_tensorboard_copy_holds_the_finite_values(tmp_path):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c  # noqa: F401 - proves that this is the format read below

    with MetricsWriter(tmp_path, LoggingConfig(tensorboard=True), 0) as writer:
        writer.write(7, {"reward/mean": 0.25, "grad/norm": float("nan")})
    data = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    found, at = {}, 0
    while at < len(data):  # records: length (8), crc (4), payload, crc (4)
        size = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        found |= {v.tag: (event.step, v.simple_value) for v in event.summary.value}
        at += size + 16
    assert found == {"reward/mean": (7, 0.25)}


def test_tensorboard_forgets_what_a_killed_run_wrote_before_its_first_checkpoint(tmp_path):
    from tensorboardX.proto import event_pb2

    with MetricsWriter(tmp_path, LoggingConfig(tensorboard=True), 0) as writer:  # from step 0, whatever is there already
        writer.write(1, {"reward/mean": 0.25})
    starts = []
    for file in (tmp_path / "tensorboard").iterdir():
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            starts += [event.step] if event.session_log.status == event_pb2.SessionLog.START else []
            at += size + 16
    assert starts == [1], "nothing tells TensorBoard to drop the points from step 1 on"


def test_summary_table_aligns_dicts_and_rows():
    by_name = summary_table([{"name": "a", "x": 1.5}, {"name": "bb"}], ["name", "x"])
    assert by_name == "name    x\n----  ---\na     1.5\nbb      -"
    assert summary_table([["a", 1.5], ["bb", None]], ["name", "x"]) == by_name
    assert "0.1235" in summary_table([[0.123456]], ["x"])


def test_progress_counts_and_can_be_silent(capsys):
    with metrics.progress(3, "rl", False, initial=1) as bar:
        bar.update()
        assert bar.total == 3
    assert list(metrics.progress([1, 2], "x", False)) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("resume_step", "purged"), [(0, 1), (3, 4)])
def test_tensorboard_forgets_what_comes_again(tmp_path, monkeypatch, resume_step, purged):
    """From the first step after the checkpoint on, not from that of the checkpoint."""
    import tensorboardX

    honest, seen = tensorboardX.SummaryWriter, []
    monkeypatch.setattr(tensorboardX, "SummaryWriter", lambda folder, **kw: seen.append(kw) or honest(folder, **kw))
    MetricsWriter(tmp_path, LoggingConfig(tensorboard=True), resume_step).close()
    assert seen == [{"purge_step": purged}]
