"""Two starts in one workdir: the second one ends with a line. A lock whose owner is gone is taken over, with a line."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from states import KEEP, save

from lgrpo.errors import UserError
from lgrpo.runs import lock as locks
from lgrpo.runs.checkpoint import Checkpoints
from lgrpo.runs.lock import FILE, Lock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "RENEW", 0.05)
    monkeypatch.setattr(locks, "STALE", 0.5)
    monkeypatch.setattr(locks, "_SETTLE", 0.05)


def owner(folder):
    return json.loads((folder / FILE).read_text())


def write(folder, **changes):
    """The lock of another process, which `changes` describes."""
    held = Lock(folder)
    text = owner(folder) | changes
    held.release()
    (folder / FILE).write_text(json.dumps(text))
    return text


def test_the_second_start_ends_and_the_first_keeps_its_lock(tmp_path):
    first = Lock(tmp_path)
    with pytest.raises(UserError, match=rf"another run is at work there \(process {os.getpid()} on ") as caught:
        Lock(tmp_path)
    assert "\n" not in str(caught.value)
    first.require()
    first.release()
    assert not (tmp_path / FILE).exists()
    Lock(tmp_path).release()


def test_a_process_that_died_leaves_a_stale_lock(tmp_path, capsys):
    code = "import sys, os; from lgrpo.runs.lock import Lock; Lock(sys.argv[1]); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    dead = owner(tmp_path)
    Lock(tmp_path).release()
    assert f"the lock of process {dead['pid']} on {dead['host']}" in capsys.readouterr().err


def test_a_number_that_another_process_got_since_is_no_owner(tmp_path):
    write(tmp_path, pid=os.getpid(), started="1")
    Lock(tmp_path).release()


def test_another_machine_is_watched_not_its_clock(tmp_path, capsys):
    """Alive: it renews. Dead: it does not."""
    theirs = write(tmp_path, host="elsewhere", boot="other")
    ended = threading.Event()

    def renewing():
        while not ended.wait(0.05):
            theirs["renewed"] += 1
            (tmp_path / "part").write_text(json.dumps(theirs))
            (tmp_path / "part").replace(tmp_path / FILE)

    thread = threading.Thread(target=renewing)
    thread.start()
    with pytest.raises(UserError, match=r"another run is at work there .* on elsewhere"):
        Lock(tmp_path)
    ended.set()
    thread.join()
    taken = Lock(tmp_path)
    assert "is stale" in capsys.readouterr().err
    taken.release()


def test_half_a_lock_is_no_lock(tmp_path):
    (tmp_path / FILE).write_text('{"host": "x')
    Lock(tmp_path).release()


def test_an_owner_that_slept_too_long_saves_nothing_more(tmp_path):
    """As after SIGSTOP: another machine took over meanwhile."""
    mine = Lock(tmp_path)
    (tmp_path / FILE).write_text(json.dumps(owner(tmp_path) | {"token": "theirs", "host": "elsewhere"}))
    time.sleep(0.2)
    assert owner(tmp_path)["token"] == "theirs", "it renewed the lock of another"
    with pytest.raises(UserError, match=r"on elsewhere.* took this workdir over"):
        mine.require()
    mine.release()
    assert owner(tmp_path)["token"] == "theirs"


def test_of_many_that_start_at_once_one_gets_in(tmp_path):
    got, refused = [], []

    def go():
        try:
            got.append(Lock(tmp_path))
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].release()


def test_a_step_that_another_run_wrote_is_not_passed_over(tmp_path):
    first, second = Checkpoints(tmp_path, KEEP), Checkpoints(tmp_path, KEEP)
    save(first, 3)
    first.wait()
    save(first, 3)  # its own: nothing to do
    with pytest.raises(UserError, match=r"checkpoints/3: another run wrote this step"):
        save(second, 3)
    first.close()
    second.close()
    save(again := Checkpoints(tmp_path, KEEP), 3)  # there from the start
    again.close()
