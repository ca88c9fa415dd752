"""A run that was stopped and restarted must be the run that was not: metrics line by line and final state bit for bit, buffer and data included."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from multihost.worlds import write_experiment

from lgrpo.config import (
    AlgoConfig,
    CheckpointConfig,
    DataConfig,
    DynamicSamplingConfig,
    ExperimentConfig,
    LatentConfig,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
)
from lgrpo.runs.checkpoint import Checkpoints
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.runs.metrics import read_metrics
from lgrpo.runs.writers.jsonl import SAMPLES
from lgrpo.train import collect, rl, sft
from lgrpo.train.setup import open_session

STEPS = 6


def config(data_dir, **train):
    """A tiny run whose rewards have spread by chance: an untrained model ends early and guesses."""
    return ExperimentConfig(
        name="resume",
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        data=DataConfig(difficulty="mini", data_dir=str(data_dir), max_prompt=32),
        rollout=RolloutConfig(group_size=4, max_new_tokens=6, latent=LatentConfig(k=4, max_latent=1)),
        algo=AlgoConfig(invalid="keep", dynamic=DynamicSamplingConfig(enabled=True, max_rounds=2)),
        sft=SftConfig(max_chain=16, max_answer=4, batch_size=16),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(num_steps=STEPS, prompts_per_step=8, **train),
        checkpoint=CheckpointConfig(every=2),
        logging=LoggingConfig(tensorboard=False, progress=False, samples_every=3),
        mesh=MeshConfig(data=8),
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def lines(workdir):
    """Metrics without what a clock measured."""
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in read_metrics(workdir)]


def final_state(cfg, workdir, *, is_rl):
    session = open_session(cfg, workdir, rl=is_rl, buffer=collect.empty_buffer if is_rl else lambda _: None)
    session.close()
    assert session.start == cfg.train.num_steps
    assert session.extra()["seconds"] > session.restored.extra["seconds"] > 0, "the clock of a run goes on over restarts"
    return session.state, session.restored.data, session.restored.buffer


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def shorter(cfg, steps):
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, num_steps=steps))


def lucky(patch):
    """Rewards with spread in most groups, a pure function of what was sampled: the untrained model itself never scores."""
    honest = rl.score

    def score(rollout, answers, tokenizer, cfg):
        scored = honest(rollout, answers, tokenizer, cfg)
        luck = np.asarray(rollout.tokens)[:, 2] % 2 == 0
        return scored.replace(rewards=luck.astype(np.float32), valid=np.ones_like(luck))

    patch.setattr(rl, "score", score)


@pytest.fixture
def lucky_grader(monkeypatch):
    lucky(monkeypatch)


@pytest.fixture(scope="module")
def whole_run(data_dir, tmp_path_factory):
    """An RL run that nothing stopped, with the lucky grader."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        lucky(patch)
        assert rl.run(config(data_dir), workdir) == 0
    return workdir


def test_rl_resumes_bit_for_bit_with_a_filled_buffer(tmp_path, data_dir, lucky_grader, whole_run):
    cfg = config(data_dir)
    for steps in (2, 4, STEPS):
        assert rl.run(shorter(cfg, steps), tmp_path / "parts") == 0
    assert lines(tmp_path / "parts") == lines(whole_run)
    tables = read_metrics(whole_run / SAMPLES)
    assert [line["step"] for line in tables] == [3, 6] and read_metrics(tmp_path / "parts" / SAMPLES) == tables
    assert len(tables[0]["samples"]) == 4, "one prompt with its group"
    whole, parts = (final_state(cfg, workdir, is_rl=True) for workdir in (whole_run, tmp_path / "parts"))
    assert_same(whole[0], parts[0])
    assert whole[1] == parts[1]
    assert_same(whole[2], parts[2])
    assert sum(row["dynamic/buffered"] for row in lines(whole_run)[:4]) > 0, "the buffer was never used, so nothing was tested"


def test_buckets_leave_a_run_as_it_is(tmp_path, data_dir, lucky_grader):
    """The whole loop, dynamic sampling included, with trimmed widths."""
    trimmed, plain = shorter(config(data_dir, completion_bucket=2), 2), shorter(config(data_dir), 2)
    trimmed = dataclasses.replace(trimmed, data=dataclasses.replace(trimmed.data, prompt_bucket=8))
    assert rl.run(plain, tmp_path / "plain") == 0 and rl.run(trimmed, tmp_path / "trimmed") == 0
    for a, b in zip(lines(tmp_path / "plain"), lines(tmp_path / "trimmed"), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=1e-3, rtol=1e-3, err_msg=name)


def test_sft_resumes_bit_for_bit(tmp_path, data_dir):
    cfg = config(data_dir)
    cfg = dataclasses.replace(cfg, sft=dataclasses.replace(cfg.sft, stage="latent", compression=4, label_noise=0.5))
    assert sft.run(cfg, tmp_path / "whole") == 0
    for steps in (2, STEPS):
        assert sft.run(shorter(cfg, steps), tmp_path / "parts") == 0
    whole, parts = (final_state(cfg, tmp_path / name, is_rl=False) for name in ("whole", "parts"))
    assert_same(whole[0], parts[0])
    assert whole[1] == parts[1]


def test_interruption_between_generations_repeats_the_step(tmp_path, data_dir, lucky_grader, whole_run, monkeypatch):
    """A signal inside a refill must not lose the prompts that were already drawn for this step."""
    cfg = config(data_dir)
    honest, calls = rl.rollout_step, []

    def interrupting(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(*args, **kwargs)

    interrupting.trace = honest.trace
    monkeypatch.setattr(rl, "rollout_step", interrupting)
    assert rl.run(cfg, tmp_path / "parts") == EXIT_PREEMPTED
    monkeypatch.setattr(rl, "rollout_step", honest)
    assert rl.run(cfg, tmp_path / "parts") == 0
    assert lines(tmp_path / "parts") == lines(whole_run)


def test_killed_process_resumes(tmp_path, data_dir, whole_run):
    """SIGKILL at an arbitrary moment, through the command line."""
    cfg = config(data_dir)
    tests = os.path.dirname(os.path.dirname(__file__))
    experiment = write_experiment(tmp_path, data_dir, "invariants.test_resume")
    command = [sys.executable, os.path.join(tests, "multihost", "main.py"), "train", str(experiment), "--workdir"]  # with the lucky grader
    env = os.environ | {"PYTHONPATH": os.path.dirname(tests)}
    process = subprocess.Popen([*command, str(tmp_path / "parts")], env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / "parts" / "metrics.jsonl", time.time() + 120
    while time.time() < deadline and process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 3):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert subprocess.run([*command, str(tmp_path / "parts")], env=env, capture_output=True, timeout=240, check=False).returncode == 0
    assert lines(tmp_path / "parts") == lines(whole_run)
    assert_same(final_state(cfg, tmp_path / "parts", is_rl=True)[0], final_state(cfg, whole_run, is_rl=True)[0])
    meta = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert meta == list(range(1, STEPS + 1))
    checkpoints = Checkpoints(tmp_path / "parts", cfg.checkpoint)
    assert checkpoints.latest() == STEPS
    checkpoints.close()
