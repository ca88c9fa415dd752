"""How several processes end when one of them is missing, different, failing or killed: within seconds, each with one line, none by an abort."""

import sys
import threading
import time
from pathlib import Path

import pytest
from multihost.worlds import config, finish, start, write_experiment

from lgrpo.__main__ import run as command
from lgrpo.errors import UserError
from lgrpo.report import trace_view
from lgrpo.runs import multihost, rendezvous

PARTNER = Path(__file__).with_name("partner.py")


def partners(*what, patience=30, only=None):
    """(exit codes, last lines of stderr, all of stderr, seconds) of processes that do `what`."""
    began = time.monotonic()
    found = start(len(what), ",".join(what), patience, devices=len(what), program=PARTNER, only=only)
    codes, _, err = finish(found, timeout=60)
    return codes, [text.splitlines()[-1] if text else "" for text in err], err, time.monotonic() - began


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize(
    ("index", "what", "code", "words"),
    [
        (0, "fault", 1, "on purpose"),
        (1, "wrong", 2, "on purpose"),
        (1, "exit", 3, "SystemExit 3"),
        (0, "interrupt", 130, "KeyboardInterrupt"),
    ],
)
def test_a_failing_process_ends_with_its_error_and_the_others_with_a_line(index, what, code, words):
    doing = ["waits", "waits"]
    doing[index] = what
    codes, last, err, seconds = partners(*doing)
    assert (codes[index], codes[1 - index]) == (code, 1), err
    assert words in last[index]
    assert last[1 - index].startswith(f"error: process {1 - index} (") and f"process {index} (" in last[1 - index]
    assert words in last[1 - index] and len(errors(err[1 - index])) == 1
    assert not any("Check failure stack trace" in text for text in err), err
    assert seconds < 40


@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_process_leaves_no_word_and_is_missed(index):
    doing = ["waits", "waits"]
    doing[index] = "killed"
    codes, last, err, seconds = partners(*doing)
    assert (codes[index], codes[1 - index]) == (-9, 1), err
    assert last[1 - index].startswith(f"error: process {1 - index} (") and f"process {index}" in last[1 - index]
    assert seconds < 40


def test_who_does_not_come_is_named():
    codes, last, err, seconds = partners("waits", "waits", "waits", patience=4, only=(0, 2))
    assert codes == [2, 2], err
    assert all("1 of 3 processes did not come" in line and ": 1; start them" in line for line in last), err
    assert all(len(text.splitlines()) == 1 for text in err) and seconds < 40


def test_facts_that_differ_end_all_of_them():
    codes, last, err, _ = partners("round", "square")
    assert codes == [2, 2], err
    for line in last:
        assert "the processes disagree on the shape: round on process 0 (" in line and "square on process 1 (" in line
    assert partners("round", "round")[0] == [0, 0]


def test_processes_that_finish_end_well_though_their_watchers_are_asking():
    """A watcher that outlived the service called that a failure; one that outlived the interpreter crashed it: code 1 or -11 after a good run."""
    codes, _, err, _ = partners("asking", "asking")
    assert codes == [0, 0] and not any(errors(text) for text in err), err


def test_a_process_that_waits_for_the_others_at_its_end_still_hears_of_their_failure():
    codes, last, err, seconds = partners("done", "late fault")
    assert codes == [1, 1], err
    assert "process 1 (" in last[0] and "on purpose" in last[0] and seconds < 40


def test_a_setting_that_differs_on_one_host_starts_no_run(tmp_path):
    """Through the command line, and before anything is written."""
    experiment = write_experiment(tmp_path, tmp_path / "data")
    found = start(2, "train", experiment, "--workdir", tmp_path / "run", devices=4, more={1: ("--optim.lr", "0.5")})
    codes, _, err = finish(found)
    assert codes == [2, 2], err
    for text in err:
        assert len(errors(text)) == 1 and text.splitlines()[-1] == errors(text)[0]
        assert "disagree on optim.lr: 0.01 on process 0 (" in text and "; 0.5 on process 1 (" in text
    assert not (tmp_path / "run").exists()


def test_what_runs_in_one_process_says_so(tmp_path, monkeypatch):
    """In one line, and before anything is read."""
    monkeypatch.setattr(multihost, "several", lambda: True)
    with pytest.raises(UserError, match="trace: runs in one process"):
        trace_view.run(config(tmp_path / "data"), tmp_path)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    grid = ("--grid", "stabilizers", "--workdir", str(tmp_path / "runs"))
    for argv in (["ablate", str(write_experiment(tmp_path, tmp_path / "data")), *grid], ["selftest", "resume"]):
        with pytest.raises(UserError, match=f"{argv[0]}: starts processes of its own; unset JAX_NUM_PROCESSES"):
            command(argv)
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_jax_finds_by_itself_is_not_waited_for_either(capfd, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(rendezvous.os, "_exit", lambda code: ended.set() if code == 2 else None)
    with rendezvous.impatient(0.05):
        assert ended.wait(10)
    assert "not all processes of the run came within 0.05 s" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "MEGASCALE_NUM_SLICES is not set"),
        ({"MEGASCALE_NUM_SLICES": "1"}, "MEGASCALE_NUM_SLICES is 1"),
        ({"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "2"}, "MEGASCALE_SLICE_ID is 2 of 2 slices"),
        ({"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "0", "JAX_PLATFORMS": "cpu"}, "only TPUs have slices"),
    ],
)
def test_variables_of_another_job_are_named(env, said):
    with pytest.raises(UserError, match=f"MEGASCALE_COORDINATOR_ADDRESS.*{said}: left over from another job; unset them"):
        multihost._check_slices({"MEGASCALE_COORDINATOR_ADDRESS": "h:1"} | env)
    good = {"MEGASCALE_COORDINATOR_ADDRESS": "h:1", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
    multihost._check_slices(good)


def test_a_coordinator_without_a_number_is_one_line(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS not set"):
        multihost.initialize()
    assert sys.stdout is not None
