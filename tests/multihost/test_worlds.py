"""One, two and four processes with four devices in all: the same run. Only the order in which sums are added over devices differs (1e-5)."""

import shutil

import jax
import numpy as np
import pytest
from multihost.worlds import config, run, write_experiment

from lgrpo.checkpoint import Checkpoints, load_params
from lgrpo.interrupt import EXIT_PREEMPTED
from lgrpo.metrics import read_metrics
from lgrpo.models.spec import abstract_params

QUIET = ("--evaluation.every", "0")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(experiment file, folder)."""
    folder = tmp_path_factory.mktemp("world")
    return write_experiment(folder, folder / "data"), folder


def lines(workdir):
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in read_metrics(workdir)]


def assert_same_run(a, b):
    mine, theirs = lines(a), lines(b)
    assert [x["step"] for x in mine] == [x["step"] for x in theirs] == [1, 2, 3]
    for x, y in zip(mine, theirs, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=1e-5, atol=1e-5, err_msg=name)
    cfg = saved(a)
    for x, y in zip(*(jax.tree.leaves(load_params(w, abstract_params(cfg.model))) for w in (a, b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def saved(workdir):
    from lgrpo.checkpoint import saved_config

    return saved_config(workdir)


def steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())


@pytest.fixture(scope="module")
def alone(world):
    """RL on one process: three steps, checkpoints after two and three."""
    experiment, folder = world
    run(1, "train", experiment, "--workdir", folder / "alone", *QUIET)
    return folder / "alone"


@pytest.fixture(scope="module")
def sft_alone(world):
    experiment, folder = world
    run(1, "sft", experiment, "--workdir", folder / "sft_alone")
    return folder / "sft_alone"


def test_what_four_processes_saved_one_goes_on_with(world, alone):
    experiment, folder = world
    four = folder / "four"
    out = run(4, "train", experiment, "--workdir", four, *QUIET, "--train.num-steps", 2)
    assert [("reward/mean" in text) for text in out] == [True, False, False, False], "the summary is printed once"
    assert steps(four) == [2] and [x["step"] for x in lines(four)] == [1, 2]
    assert sum(x["dynamic/buffered"] for x in lines(alone)) > 0, "the buffer was never used"
    run(1, "train", experiment, "--workdir", four, *QUIET)
    assert_same_run(four, alone)


def test_what_one_process_saved_four_go_on_with(world, alone):
    experiment, folder = world
    moved = folder / "moved"
    shutil.copytree(alone, moved)
    shutil.rmtree(moved / "checkpoints" / "3")
    run(4, "train", experiment, "--workdir", moved, *QUIET)
    assert_same_run(moved, alone)


def test_two_processes_train_and_evaluate_like_one(world, sft_alone):
    experiment, folder = world
    run(2, "sft", experiment, "--workdir", folder / "sft_two")
    assert_same_run(folder / "sft_two", sft_alone)
    assert "eval/pass@1" in lines(sft_alone)[-1]


def test_a_signal_to_one_of_two_stops_both_at_the_same_step(world, sft_alone):
    """In the middle of an evaluation, on the process that is not the main one: saved once, and the evaluation is repeated."""
    experiment, folder = world
    workdir = folder / "preempted"
    run(2, "sft", experiment, "--workdir", workdir, code=EXIT_PREEMPTED, interrupt="lgrpo.evaluation.measure:_rollout:1:1")
    assert steps(workdir) == [2] and [x["step"] for x in lines(workdir)] == [1]
    run(2, "sft", experiment, "--workdir", workdir)
    assert_same_run(workdir, sft_alone)
    checkpoints = Checkpoints(workdir, config("").checkpoint)
    assert checkpoints.best() == 2
    checkpoints.close()


def test_two_processes_evaluate_a_checkpoint(world, sft_alone):
    experiment, folder = world
    results = []
    for processes in (1, 2):
        out = run(processes, "eval", experiment, "--workdir", sft_alone, "--out", f"eval{processes}")
        assert [("pass@1" in text) for text in out] == [True, False][:processes]
        results.append((sft_alone / f"eval{processes}" / "eval.jsonl").read_text())
    assert results[0] == results[1]
