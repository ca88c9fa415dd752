"""Checkpoints and the lock of a run in a bucket: what holds on a disk holds there, without a rename."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import pytest
from states import KEEP, make_state, restored, same, save

from lgrpo.config import CheckpointConfig
from lgrpo.errors import UserError
from lgrpo.runs import integrity, storage
from lgrpo.runs import lock as locks
from lgrpo.runs.checkpoint import Checkpoints, load_params, saved_extra, saved_step
from lgrpo.runs.lock import FILE, Lock


@pytest.fixture
def saved(bucket):
    ckpt = Checkpoints(bucket, KEEP)
    for step in (6, 9):
        save(ckpt, step, step / 10)
    ckpt.close()
    return bucket


def steps(folder):
    return sorted(int(child.name) for child in (folder / "checkpoints").iterdir())


def test_saved_kept_amended_and_read(saved):
    assert steps(saved) == [6, 9]
    got = restored(saved)
    assert got.step == 9
    same(got.state, make_state(9))
    ckpt = Checkpoints(saved, KEEP)
    ckpt.amend(9, extra={"late": 1}, metric=0.1)
    assert (ckpt.latest(), ckpt.best()) == (9, 6)
    save(ckpt, 12, 0.2, late=1)
    save(ckpt, 15, 0.2, late=1)
    ckpt.close()
    assert steps(saved) == [6, 12, 15], "the newest two and the best"
    assert (saved_step(saved, best=True), saved_extra(saved)) == (6, {"late": 1})
    same(load_params(str(saved), make_state().params, best=True), make_state(6).params)
    with pytest.raises(UserError, match=r"holds checkpoints up to step 15"):
        Checkpoints(saved, CheckpointConfig(resume=False))


def test_damage_sets_aside_and_the_step_may_come_again(saved, capsys):
    broken = saved / "checkpoints" / "9" / "meta" / "metadata"
    storage.write_text(broken, storage.text_of(broken).replace("9", "8"))
    assert restored(saved).step == 6
    assert "checkpoints/9: cannot be read (DamagedError" in capsys.readouterr().err
    assert steps(saved) == [6] and "meta/metadata" in storage.files_below(saved / "unreadable" / "9")
    ckpt = Checkpoints(saved, KEEP)
    save(ckpt, 9)
    ckpt.wait()
    assert ckpt.roll_back(6, 1e-3) and ckpt.latest() == 6
    ckpt.close()
    assert integrity.is_whole(saved / "rolled_back" / "9") and steps(saved) == [6]


def test_what_was_killed_in_the_middle_is_no_checkpoint(saved):
    (saved / "checkpoints" / "9" / integrity.COMMIT).unlink()
    assert restored(saved).step == 6
    ckpt = Checkpoints(saved, KEEP)
    save(ckpt, 9)
    ckpt.close()
    assert restored(saved).step == 9


@pytest.fixture
def impatient(monkeypatch):
    """Half a minute of gcsfs and a minute of ours in half a second each."""
    import gcsfs.retry

    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=lambda s: asyncio.sleep(s / 60)))
    monkeypatch.setattr(storage, "PATIENCE", 1.0)


def test_a_storage_that_goes_away_during_a_save(saved, emulator, impatient, monkeypatch):
    """For a while: it is waited for. For good: one line, and no good checkpoint is removed or set aside."""
    honest, back = Checkpoints._sign, threading.Timer(0.2, emulator.start)
    absence = iter((back.start, lambda: None))

    def sign(self):
        """Once the arrays are there, before the checksums."""
        emulator.stop()
        next(absence)()
        honest(self)

    monkeypatch.setattr(Checkpoints, "_sign", sign)
    ckpt = Checkpoints(saved, KEEP)
    save(ckpt, 12)
    ckpt.wait()
    back.join()
    try:
        save(ckpt, 15)
        with pytest.raises(UserError) as caught:
            ckpt.wait()
        ckpt.close()
        with pytest.raises(UserError, match="does not answer"):
            restored(saved)
    finally:
        emulator.start()
    text = str(caught.value)
    assert "saving step 15 failed: the storage does not answer" in text and "the checkpoints before it are intact" in text
    assert "\n" not in text
    assert storage.files_below(saved / "unreadable") == [] and restored(saved).step == 12


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "RENEW", 0.2)
    monkeypatch.setattr(locks, "STALE", 1.5)
    monkeypatch.setattr(locks, "_SETTLE", 0.05)


def owner(folder):
    return json.loads(storage.text_of(folder / FILE))


def started_at_once(folder, count=4):
    got, refused = [], []

    def go():
        try:
            got.append(Lock(folder))
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=go) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got, refused


def test_of_many_starts_one_gets_the_workdir_and_renews(bucket, quick):
    (mine,), refused = started_at_once(bucket)
    assert len(refused) == 3 and all("another run is at work there" in text for text in refused)
    until = time.monotonic() + 30
    while owner(bucket)["renewed"] < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert owner(bucket)["renewed"] >= 2
    mine.require()
    (bucket / FILE).unlink()
    mine.require()
    assert owner(bucket)["token"] == mine._mine["token"], "someone tidied up: it is put back"
    mine.release()
    assert storage.files_below(bucket) == []


def test_a_lock_of_another_machine_is_taken_over_by_one_of_many(bucket, quick, capsys):
    dead = Lock(bucket)
    theirs = owner(bucket) | {"host": "elsewhere", "token": "theirs"}
    storage.write_text(bucket / FILE, json.dumps(theirs))
    (mine,), refused = started_at_once(bucket)
    assert len(refused) == 3 and "the lock of process" in capsys.readouterr().err
    with pytest.raises(UserError, match="took this workdir over while this process did not answer"):
        dead.require()
    dead.release()
    mine.require()
    mine.release()
