"""Damage anywhere in the newest checkpoint: the one before it is used, one line says so, and nothing is deleted."""

import hashlib
import shutil

import pytest
from states import CFG, KEEP, make_state, restored, same, save

from lgrpo.runs.checkpoint import Checkpoints, load_params, saved_config
from lgrpo.runs.integrity import FILE


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints 3 and 6; its tests put back what they damage."""
    workdir = tmp_path_factory.mktemp("saved")
    ckpt = Checkpoints(workdir, KEEP)
    save(ckpt, 3, 0.1)
    save(ckpt, 6, 0.2)
    ckpt.close()
    return workdir


def files_of(folder):
    # What Orbax writes when it names the folder holds times and no data: see test_files_without_data.
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("commit_success.txt", "_CHECKPOINT_METADATA"))


@pytest.mark.parametrize("harm", [flip, truncate, remove])
def test_any_file(saved, capsys, harm):
    newest, aside = saved / "checkpoints" / "6", saved / "unreadable"
    before = digests(saved / "checkpoints" / "3")
    checked = 0
    for path in files_of(newest):
        if path.name == FILE and harm is remove:
            continue  # as a checkpoint of an older version: taken as it is
        good = path.read_bytes()
        harm(path)
        capsys.readouterr()
        got = restored(saved)
        warnings = [line for line in capsys.readouterr().err.splitlines() if line]
        assert got.step == 3, path
        same(got.state, make_state(3))
        assert len(warnings) == 1, warnings
        assert "checkpoints/6: cannot be read" in warnings[0]
        assert digests(saved / "checkpoints" / "3") == before
        (aside / "6").rename(newest)  # kept, so that it can be looked at
        shutil.rmtree(aside)
        path.write_bytes(good)
        checked += 1
    assert checked > 20
    assert restored(saved).step == 6


def test_files_without_data(saved):
    """A flip in a file that holds no data does no harm."""
    newest = saved / "checkpoints" / "6"
    for path in sorted({*newest.rglob("*")} - {*files_of(newest)}):
        if path.is_file():
            good = path.read_bytes()
            flip(path)
            got = restored(saved)
            assert got.step == 6
            same(got.state, make_state(6))
            path.write_bytes(good)


@pytest.mark.parametrize("item", ["params", "meta"])
def test_readers_of_weights_and_config_fall_back_too(saved, tmp_path, capsys, item):
    shutil.copytree(saved, tmp_path / "copy")
    path = max(files_of(tmp_path / "copy" / "checkpoints" / "6" / item), key=lambda p: p.stat().st_size)
    flip(path)
    if item == "params":
        same(load_params(tmp_path / "copy", make_state().params), make_state(3).params)
    else:
        assert saved_config(tmp_path / "copy") == CFG
    assert "checkpoints/6: cannot be read (DamagedError" in capsys.readouterr().err
    assert (tmp_path / "copy" / "checkpoints" / "6").is_dir()  # a reader moves nothing


def test_a_checkpoint_without_checksums_is_taken(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "old")
    (tmp_path / "old" / "checkpoints" / "6" / FILE).unlink()
    assert restored(tmp_path / "old").step == 6
