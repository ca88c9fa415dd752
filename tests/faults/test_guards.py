"""Skipped updates and alarms: what is kept for a look, what is said, when a run stops."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invariants.test_resume import config
from states import CFG, KEEP, make_state, save

from lgrpo.config import AlarmConfig, AlgoConfig, ExperimentConfig, LoggingConfig
from lgrpo.config.overrides import apply_diff as change
from lgrpo.errors import UserError
from lgrpo.runs.checkpoint import Checkpoints, load_params
from lgrpo.runs.metrics import read_metrics
from lgrpo.train import collect, rl
from lgrpo.train.guards import DUMPS, Guards
from lgrpo.train.setup import open_session

OK = {"grad/skipped": 0.0, "grad/nonfinite": 0.0}


def guards(tmp_path, **alarms):
    off = {f.name: None for f in dataclasses.fields(AlarmConfig)}
    cfg = ExperimentConfig(logging=LoggingConfig(alarms=AlarmConfig(**off | alarms)))
    return Guards(SimpleNamespace(cfg=cfg, workdir=tmp_path, state=SimpleNamespace(skipped=jnp.int32(0))))


def test_a_run_keeps_the_batches_of_skipped_updates_and_stops(tmp_path, monkeypatch, capsys):
    cfg = config(tmp_path / "data")
    cfg = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, max_nonfinite=2), algo=AlgoConfig(invalid="keep"))
    honest, made = rl.make_train_batch, []

    def poisoned(*args, **kwargs):
        batch = honest(*args, **kwargs)
        made.append(args)
        return batch.replace(advantages=batch.advantages * jnp.nan) if len(made) > 3 else batch

    monkeypatch.setattr(rl, "make_train_batch", poisoned)
    with pytest.raises(UserError, match=r"step 5: 2 non-finite .* last good step is 2: .*--checkpoint.rollback 2 --optim.lr 0.0033"):
        rl.run(cfg, tmp_path / "run")
    kept = sorted((tmp_path / "run" / "nonfinite").iterdir())
    assert [p.name for p in kept] == ["step4.npz", "step5.npz"]
    with np.load(kept[0], allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["rollout.ids"], np.asarray(made[3][1].ids))
        np.testing.assert_array_equal(arrays["prompts.uid"], np.asarray(made[3][0].uid))
    err = capsys.readouterr().err
    assert f"step 4: non-finite gradient, update skipped (1 in all); its batch is in {kept[0]}" in err
    # The checkpoint that was due at step 4 would have been of the streak: there is none, and none of before is gone.
    session = open_session(cfg, tmp_path / "run", rl=True, buffer=collect.empty_buffer)
    session.close()
    assert (session.start, int(session.state.skipped)) == (2, 0)

    monkeypatch.setattr(rl, "make_train_batch", honest)
    # As the message says: the run goes on from there with another learning rate, once, and its metrics say so.
    back = change(cfg, {"checkpoint.rollback": 2, "checkpoint.keep": 9, "optim.lr": 0.0033})
    assert rl.run(back, tmp_path / "run") == 0
    rows = read_metrics(tmp_path / "run")
    assert [(row["step"], row.get("run/rollback")) for row in rows] == [(1, None), (2, None), (3, 2.0), (4, None), (5, None), (6, None)]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")  # as when it was pruned
    stay = open_session(back, tmp_path / "run", rl=True, buffer=collect.empty_buffer)
    stay.close()
    assert stay.start == 6, "the same command goes back again"
    again = change(back, {"optim.lr": 0.001, "checkpoint.rollback": 4})
    session = open_session(again, tmp_path / "run", rl=True, buffer=collect.empty_buffer)
    session.close()
    assert session.start == 4 and (tmp_path / "run" / "rolled_back" / "6").is_dir()
    with pytest.raises(UserError, match=r"rollback=3: .* holds the steps \[4\]"):
        open_session(change(cfg, {"checkpoint.rollback": 3}), tmp_path / "run", rl=True, buffer=collect.empty_buffer)
    with pytest.raises(UserError, match=r"optim\.lr"):
        open_session(change(cfg, {"optim.lr": 0.5}), tmp_path / "run", rl=True, buffer=collect.empty_buffer)


def test_a_checkpoint_that_was_due_inside_a_streak_comes_after_it(tmp_path, monkeypatch):
    cfg = change(config(tmp_path / "data"), {"algo.dynamic.enabled": False, "train.num_steps": 5, "checkpoint.keep": 9})
    honest, made = rl.make_train_batch, []

    def poisoned(*args, **kwargs):
        batch = honest(*args, **kwargs)
        made.append(1)
        return batch.replace(advantages=batch.advantages * jnp.nan) if len(made) in (2, 5) else batch

    monkeypatch.setattr(rl, "make_train_batch", poisoned)
    assert rl.run(cfg, tmp_path / "run") == 0
    # 2 waited for 3; 5 is the end, whose weights are those of step 4.
    assert sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()) == [3, 4, 5]


def test_weights_that_are_not_finite_are_refused(tmp_path):
    ckpt = Checkpoints(tmp_path, KEEP)
    state = make_state(3)
    name = next(iter(state.params))
    save(ckpt, 3)
    broken = state.replace(params=state.params | {name: jax.tree.map(lambda x: x * jnp.nan, state.params[name])})
    ckpt.save(6, state=broken, data={}, buffer=None, cfg=CFG, extra={}, metric=None)
    with pytest.raises(UserError, match=rf"checkpoints/6: .*not finite .*{name}.*--checkpoint.rollback"):
        ckpt.restore(make_state(), None, CFG)
    ckpt.close()
    with pytest.raises(UserError, match="not finite"):
        load_params(tmp_path, make_state().params)


def test_a_reward_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    honest = rl.score

    def nan(*args):
        scored = honest(*args)
        rewards = np.array(scored.rewards)
        rewards[5] = np.nan
        return scored.replace(rewards=rewards)

    monkeypatch.setattr(rl, "score", nan)
    with pytest.raises(UserError, match=r"step 1: 1 of 32 rewards are not finite \(the first is nan, where gold is"):
        rl.run(config(tmp_path / "data"), tmp_path / "run")


def test_steps_without_an_informative_group_ring(tmp_path, capsys):
    watch = guards(tmp_path, uninformative_steps=2)
    for step, share in enumerate([0.0, 0.5, 0.0, 0.0, 0.0, 0.0], 1):
        watch.after(step, OK | {"dynamic/informative_frac": share, "reward/mean": 0.25}, {})
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].split()[-1] for line in said] == ["4", "6"]
    assert "2 steps without a group whose valid rewards differ, reward/mean is 0.25" in said[0]
    assert "logging.alarms.uninformative_steps=2" in said[0]
    assert AlarmConfig().uninformative_steps and AlarmConfig().nan_above == 0.0, "on by default"


def test_the_number_of_kept_batches_is_bounded(tmp_path, capsys):
    watch = guards(tmp_path)
    for step in range(1, DUMPS + 3):
        watch.after(step, {"grad/skipped": float(step), "grad/nonfinite": 1.0}, {"x": np.arange(step)})
    assert len(list((tmp_path / "nonfinite").iterdir())) == DUMPS
    assert capsys.readouterr().err.splitlines()[-1].endswith("its batch is not kept")


def test_no_room_for_a_batch_does_not_stop_the_run(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    guards(tmp_path).after(1, {"grad/skipped": 1.0, "grad/nonfinite": 1.0}, {"x": np.arange(3)})
    assert "the batch was not kept ([Errno 28] No space left on device)" in capsys.readouterr().err
    assert list((tmp_path / "nonfinite").iterdir()) == []


def test_a_batch_is_not_worth_a_run_where_nothing_can_be_written(tmp_path, capsys):
    (tmp_path / "nonfinite").write_text("a file in the way of the folder")
    guards(tmp_path).after(1, {"grad/skipped": 1.0, "grad/nonfinite": 1.0}, {"x": np.arange(3)})
    assert "the batch was not kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "limit", "metric", "good", "bad", "said"),
    [
        ("latent_share_below", 0.1, "rollout/latent_share", 0.1, 0.05, "latent share is 0.05, below logging.alarms.latent_share_below=0.1"),
        ("invalid_above", 0.5, "rollout/invalid_frac", 0.5, 0.75, "invalid is 0.75, above logging.alarms.invalid_above=0.5"),
        ("replay_gap_above", 0.1, "policy/replay_gap", 0.0, float("nan"), "replay gap is nan, above logging.alarms.replay_gap_above=0.1"),
        ("nan_above", 0.0, "rollout/nan_frac", 0.0, 0.01, "nan is 0.01, above logging.alarms.nan_above=0"),
        ("entropy_below", 0.2, "policy/logp", -0.5, -0.1, "entropy is 0.1, below logging.alarms.entropy_below=0.2"),
    ],
)
def test_an_alarm_rings_once_per_crossing(tmp_path, capsys, field, limit, metric, good, bad, said):
    watch = guards(tmp_path, **{field: limit})
    for step, value in enumerate([good, bad, bad, good, bad], 1):
        watch.after(step, OK | {metric: value}, {})
    assert capsys.readouterr().err.splitlines() == [f"warning: step {step}: {said}" for step in (2, 5)]


def test_alarms_that_are_off_and_metrics_that_are_absent_are_silent(tmp_path, capsys):
    guards(tmp_path).after(1, OK | {"rollout/invalid_frac": 1.0, "policy/replay_gap": 99.0}, {})
    guards(tmp_path, invalid_above=0.5).after(1, OK, {})
    assert capsys.readouterr().err == ""
