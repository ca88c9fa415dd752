"""The record of a run in a bucket: it follows by parts, never with half a line, and waits while the bucket is away."""

import pytest

from lgrpo.config import LoggingConfig
from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.metrics import MetricsWriter, read_metrics
from lgrpo.runs.writers.mirror import Mirror

QUIET = LoggingConfig(tensorboard=False)
FILE = "metrics.jsonl"


def steps(folder):
    return [row["step"] for row in read_metrics(folder)]


def test_whole_lines_follow_by_parts(bucket):
    mirror = Mirror(bucket, files=(FILE, "other"), folders=("events",))
    mirror.start()
    assert storage.files_below(bucket) == []
    with (mirror.folder / FILE).open("a") as file:
        for text, there in (("one\ntw", "one\n"), ("o\n", "one\ntwo\n"), ("th", "one\ntwo\n"), ("ree\nfour\n", "one\ntwo\nthree\nfour\n")):
            file.write(text)
            file.flush()
            mirror.send()
            assert storage.text_of(bucket / FILE) == there
    (mirror.folder / "events").mkdir()
    (mirror.folder / "events" / "a").write_bytes(b"\x00half")
    mirror.send()
    assert (bucket / "events" / "a").read_bytes() == b"\x00half", "event files have no lines"
    storage.write_text(bucket / FILE, "someone else's\n")
    with (mirror.folder / FILE).open("a") as file:
        file.write("five\n")
    mirror.close()
    assert storage.text_of(bucket / FILE) == "one\ntwo\nthree\nfour\nfive\n", "what is not ours is replaced, not added to"
    assert storage.files_below(bucket) == ["events/a", FILE] and not mirror.folder.exists()


def test_parts_of_a_killed_process_go(bucket):
    """TensorBoard would read one as an event file of its own."""
    for name in (f"{FILE}.part", "events/old", "events/old.part"):
        storage.write_text(bucket / name, "x")
    mirror = Mirror(bucket, files=(FILE, "other"), folders=("events",))
    mirror.start()
    assert storage.files_below(bucket) == ["events/old"]
    mirror.close()


def test_a_run_that_goes_on_rewinds(bucket):
    with MetricsWriter(bucket, QUIET) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"reward/mean": 0.5})
        writer.flush()
        assert steps(bucket) == [1, 2, 3]
        writer.write(4, {"reward/mean": 0.5})
    assert steps(bucket) == [1, 2, 3, 4], "the rest comes at the end"
    with MetricsWriter(bucket, QUIET, resume_step=2) as writer:
        assert steps(bucket) == [1, 2]
        writer.write(3, {"reward/mean": 1.0})
        assert [row["step"] for row in writer.read()] == [1, 2, 3]
    assert read_metrics(bucket)[-1] == {"step": 3, "reward/mean": 1.0}


def test_it_waits_while_the_bucket_is_away(bucket, emulator, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    writer = MetricsWriter(bucket, QUIET)
    writer.write(1, {"reward/mean": 0.5})
    emulator.stop()
    try:
        with pytest.raises(UserError, match="the storage does not answer"):
            writer.flush()
        writer.write(2, {"reward/mean": 0.5})
        with pytest.raises(UserError, match=r"the record of the run is complete in (\S+)") as caught:
            writer.close()
    finally:
        emulator.start()
    assert steps(str(caught.value).split()[-1]) == [1, 2]
