"""A full disk: one clear line, the good checkpoints stay, and the run goes on once there is room."""

import contextlib
import errno
import os
import subprocess
import sys

import pytest
from states import CFG, make_state, same, save

from lgrpo import __main__
from lgrpo.config import CheckpointConfig
from lgrpo.errors import UserError
from lgrpo.runs import integrity
from lgrpo.runs.checkpoint import Checkpoints

ONE = CheckpointConfig(keep=1, keep_best=False)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def goes_on(workdir):
    again = Checkpoints(workdir, ONE)
    got = again.restore(make_state(), None, CFG)
    assert got.step == 3
    same(got.state, make_state(3))
    save(again, 6)
    again.close()
    again = Checkpoints(workdir, ONE)
    assert again.restore(make_state(), None, CFG).step == 6
    again.close()


def save_and_wait(ckpt, step):
    save(ckpt, step)
    ckpt.wait()


@pytest.mark.parametrize("ask", ["wait", "save", "close"])
def test_a_save_that_finds_no_room(tmp_path, monkeypatch, ask):
    """The error of the background write comes with the next call, whichever it is; keep=1 has not deleted the only good checkpoint."""
    ckpt = Checkpoints(tmp_path, ONE)
    save(ckpt, 3)
    ckpt.wait()
    monkeypatch.setattr(integrity, "write_checksums", full)
    save(ckpt, 6)
    with pytest.raises(UserError, match=r"saving step 6 failed .*No space left.*checkpoint 3 is intact") as caught:
        save(ckpt, 9) if ask == "save" else getattr(ckpt, ask)()
    assert "\n" not in str(caught.value)
    ckpt.close()
    monkeypatch.undo()
    goes_on(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "lgrpo-test", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small file system needs rights that this user does not have")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    ckpt = Checkpoints(small_disk, ONE)
    save(ckpt, 3)
    ckpt.wait()
    filler = os.open(small_disk / "filler", os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while True:
            os.write(filler, bytes(4096))
    os.close(filler)
    with pytest.raises(UserError, match=r"saving step 6 failed .*checkpoint 3 is intact"):
        save_and_wait(ckpt, 6)
    ckpt.close()
    (small_disk / "filler").unlink()
    goes_on(small_disk)


def test_metrics_that_find_no_room(monkeypatch, capsys):
    """Through the command line: one line, exit code 2."""
    monkeypatch.setattr(__main__, "run", full)
    monkeypatch.setattr(sys, "argv", ["lgrpo"])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: [Errno 28] No space left on device; make room")
