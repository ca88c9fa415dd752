"""Two processes with one workdir in a bucket."""

from pathlib import Path

from multihost import worlds

from lgrpo.runs import storage


def test_two_processes_save_set_aside_and_restore(bucket):
    out = worlds.run(2, bucket, devices=2, program=Path(__file__).with_name("two.py"))
    assert out[0].splitlines()[-1] == "restored 3"
    left = storage.files_below(bucket)
    assert {name.split("/")[1] for name in left} == {"3", "6"} and {name.split("/")[0] for name in left} == {"checkpoints", "unreadable"}
    assert all(
        any(f"{place}/params/ocdbt.process_{i}" in name for name in left) for i in (0, 1) for place in ("checkpoints/3", "unreadable/6")
    )
