"""A signal at any point of a step: saved once, exit code 75, and the restarted run is the run that was not stopped, evaluations included."""

import dataclasses
import signal

import pytest
from invariants.test_resume import assert_same, config, final_state, lines, lucky

from lgrpo.config import EvaluationConfig
from lgrpo.evaluation import evaluate, measure
from lgrpo.runs.checkpoint import Checkpoints
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.train import rl, sft

EVALUATION = EvaluationConfig(every=2, problems=16, batch=8, samples=2, bootstrap=20)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def signal_at(monkeypatch):
    """signal_at(module, name, n): SIGTERM to this process in the n-th call of module.name; returns how to take it back."""

    def arm(module, name, at):
        honest, calls = getattr(module, name), []

        def signalling(*args, **kw):
            calls.append(1)
            if len(calls) == at:
                signal.raise_signal(signal.SIGTERM)
            return honest(*args, **kw)

        signalling.trace = getattr(honest, "trace", None)  # of a program: its cost
        monkeypatch.setattr(module, name, signalling)
        return lambda: monkeypatch.setattr(module, name, honest)

    return arm


def experiment(data_dir, steps):
    cfg = config(data_dir)
    train = dataclasses.replace(cfg.train, num_steps=steps)
    small = dataclasses.replace(cfg.sft, stage="latent", compression=4, heldout=32, patience=5)
    keep = dataclasses.replace(cfg.checkpoint, every=0, keep=9, keep_best=True)
    return dataclasses.replace(cfg, train=train, sft=small, evaluation=EVALUATION, checkpoint=keep)


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the program catches it or saves because of it."""


def steps_saved(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())


def best(cfg, workdir):
    checkpoints = Checkpoints(workdir, cfg.checkpoint)
    checkpoints.close()
    return checkpoints.best()


@pytest.fixture(scope="module")
def rl_whole(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        lucky(patch)
        assert rl.run(experiment(data_dir, 4), workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def sft_whole(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert sft.run(experiment(data_dir, 4), workdir) == 0
    return workdir


POINTS = {
    "first rollout": (rl, "rollout_step", 1, 0),
    "refill": (rl, "rollout_step", 2, 0),
    "update": (rl, "train_step", 3, 3),
    "update before an evaluation": (rl, "train_step", 2, 2),
    "evaluation": (measure, "_rollout", 2, 2),
    "last evaluation": (measure, "_rollout", 7, 4),
}


@pytest.mark.parametrize("point", POINTS)
def test_rl_stops_inside_a_step(tmp_path, data_dir, rl_whole, signal_at, monkeypatch, capsys, point):
    lucky(monkeypatch)
    cfg = experiment(data_dir, 4)
    module, name, at, step = POINTS[point]
    undo = signal_at(module, name, at)
    assert rl.run(cfg, tmp_path) == EXIT_PREEMPTED
    assert capsys.readouterr().err.splitlines()[-1] == f"saved step {step}; run the same command again"
    undo()
    assert steps_saved(tmp_path) == [step]
    assert rl.run(cfg, tmp_path) == 0
    assert lines(tmp_path) == lines(rl_whole)
    mine, theirs = (final_state(cfg, workdir, is_rl=True) for workdir in (tmp_path, rl_whole))
    assert_same(mine[0], theirs[0])
    assert mine[1] == theirs[1]
    assert_same(mine[2], theirs[2])


@pytest.mark.parametrize("loop", ["rl", "sft"])
def test_a_kill_between_a_line_and_its_checkpoint_leaves_one_line(tmp_path, data_dir, rl_whole, sft_whole, signal_at, monkeypatch, loop):
    """Stopped inside an evaluation, started again, and killed when its line was on disk and its checkpoint not yet amended."""
    lucky(monkeypatch)
    cfg, run = experiment(data_dir, 4), {"rl": rl.run, "sft": sft.run}[loop]
    undo = signal_at(measure, "_rollout", 1)
    assert run(cfg, tmp_path) == EXIT_PREEMPTED
    undo()

    def killed(*_, **__):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "amend", killed)
        with pytest.raises(KilledError):
            run(cfg, tmp_path)
    assert [row["step"] for row in lines(tmp_path)] == [1, 2] and steps_saved(tmp_path) == [2]
    assert run(cfg, tmp_path) == 0
    assert lines(tmp_path) == lines({"rl": rl_whole, "sft": sft_whole}[loop])


@pytest.mark.parametrize("name", ["sft_losses", "rollout"])
def test_sft_stops_inside_an_evaluation_twice(tmp_path, data_dir, sft_whole, signal_at, name):
    """Interrupted, and interrupted again in the same evaluation: still the same lines, best checkpoint and progress."""
    cfg = experiment(data_dir, 4)
    for _ in range(2):
        undo = signal_at(*((sft, name, 1) if name == "sft_losses" else (measure, "_rollout", 1)))
        assert sft.run(cfg, tmp_path / "parts") == EXIT_PREEMPTED
        undo()
        assert steps_saved(tmp_path / "parts") == [2] and len(lines(tmp_path / "parts")) == 1
    assert sft.run(cfg, tmp_path / "parts") == 0
    assert lines(tmp_path / "parts") == lines(sft_whole)
    assert best(cfg, tmp_path / "parts") == best(cfg, sft_whole)
    mine, theirs = (final_state(cfg, workdir, is_rl=False) for workdir in (tmp_path / "parts", sft_whole))
    assert_same(mine[0], theirs[0])


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path, data_dir, rl_whole, signal_at):
    cfg = experiment(data_dir, 4)
    assert evaluate.run(cfg, rl_whole, out="whole") == 0
    undo = signal_at(measure, "_rollout", 2)
    assert evaluate.run(cfg, rl_whole, out="parts") == EXIT_PREEMPTED
    undo()
    done = {p: p.stat().st_mtime_ns for p in (rl_whole / "parts" / "shards").iterdir()}
    assert len(done) == 2 and not (rl_whole / "parts" / "eval.json").exists()
    assert evaluate.run(cfg, rl_whole, out="parts") == 0
    assert all(p.stat().st_mtime_ns == when for p, when in done.items())
    assert (rl_whole / "parts" / "eval.jsonl").read_text() == (rl_whole / "whole" / "eval.jsonl").read_text()
