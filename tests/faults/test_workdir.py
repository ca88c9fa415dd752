"""What can be wrong with a workdir: one line each, exit code 2, nothing half done."""

import shutil
import subprocess

import jax
import jax.numpy as jnp
import pytest
from invariants.test_resume import config

from lgrpo.errors import UserError
from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag
from lgrpo.runs.lock import FILE
from lgrpo.runs.metrics import FILE as METRICS
from lgrpo.train import collect, rl, setup
from lgrpo.train.setup import open_session


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_file_and_a_name_that_is_too_long(tmp_path):
    (tmp_path / "file").write_text("")
    for path, why in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "run", "Not a directory"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(UserError) as caught:
            setup._own(path)
        assert why in one_line(caught) and one_line(caught).startswith(f"--workdir {path}: ")


@pytest.fixture
def read_only(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "lgrpo-test", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a file system needs rights that this user does not have")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_file_system(read_only):
    for path in (read_only, read_only / "run"):
        with pytest.raises(UserError) as caught:
            setup._own(path)
        assert "Read-only file system; give a folder that can be made and written" in one_line(caught)


@pytest.fixture
def cfg(tmp_path):
    return config(tmp_path / "data")


def test_a_broken_line_of_metrics_and_a_folder_that_is_deleted(cfg, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / METRICS).write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(UserError) as caught:
        open_session(cfg, workdir, rl=True, buffer=collect.empty_buffer)
    assert f"{workdir / METRICS}:2: not a line of metrics" in one_line(caught)
    assert not (workdir / FILE).exists(), "a start that failed keeps its lock"

    (workdir / METRICS).unlink()
    session = open_session(cfg, workdir, rl=True, buffer=collect.empty_buffer)
    with pytest.raises(UserError, match="another run is at work there"):
        open_session(cfg, workdir, rl=True, buffer=collect.empty_buffer)
    shutil.rmtree(workdir)
    with pytest.raises(UserError) as caught:
        session.save(2, session.state, {}, None, session.extra(), None)
    assert "the folder is gone" in one_line(caught)
    session.close()
    heard = session.clock.programs
    jax.jit(lambda x: x * 2.0 + 7.25).lower(jnp.zeros(3)).compile()
    assert session.clock.programs == heard, "a closed run still listens"


def test_a_signal_while_a_run_starts_and_its_last_line(cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(StopFlag, "agreed", lambda self: True)
    assert rl.run(cfg, tmp_path / "run") == EXIT_PREEMPTED
    assert capsys.readouterr().err.splitlines()[-1] == "nothing saved yet; run the same command again"
