"""Two processes with one workdir in a bucket."""

from pathlib import Path

from multihost import worlds
from multihost.test_worlds import assert_same_run, here

from lgrpo.runs import storage
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.train import rl


def test_two_processes_save_set_aside_and_restore(bucket):
    out = worlds.run(2, bucket, devices=2, program=Path(__file__).with_name("two.py"))
    assert out[0].splitlines()[-1] == "restored 3"
    left = storage.files_below(bucket)
    assert {name.split("/")[1] for name in left} == {"3", "6"} and {name.split("/")[0] for name in left} == {"checkpoints", "unreadable"}
    assert all(
        any(f"{place}/params/ocdbt.process_{i}" in name for name in left) for i in (0, 1) for place in ("checkpoints/3", "unreadable/6")
    )


def test_two_processes_train_in_a_bucket(bucket, tmp_path):
    """A signal to one of them stops both in the middle; then they go on from the bucket. The run is the one on a disk, and nothing half is left."""
    experiment, quiet = worlds.write_experiment(tmp_path, tmp_path / "data"), ("--evaluation.every", "0", "--checkpoint.every", "1")
    here(rl, tmp_path, tmp_path / "alone", evaluation__every=0)
    command = ("train", experiment, "--workdir", bucket, *quiet)
    worlds.run(2, *command, code=EXIT_PREEMPTED, interrupt="lgrpo.train.rl:_learn:2:1")
    worlds.run(2, *command)
    assert_same_run(bucket, tmp_path / "alone")
    left = {name.split("/")[0] for name in storage.files_below(bucket)}
    assert left == {"checkpoints", "config.json", "metrics.jsonl", "samples.jsonl"}, "locks, parts or temporary files stayed"
