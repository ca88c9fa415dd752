"""Skipped updates and alarms: what is kept for a look, what is said, when a run stops."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from invariants.test_resume import config

from lgrpo.config import AlarmConfig, AlgoConfig, ExperimentConfig, LoggingConfig
from lgrpo.errors import UserError
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
    with pytest.raises(UserError, match="step 5: 2 non-finite gradients in a row"):
        rl.run(cfg, tmp_path / "run")
    kept = sorted((tmp_path / "run" / "nonfinite").iterdir())
    assert [p.name for p in kept] == ["step4.npz", "step5.npz"]
    with np.load(kept[0], allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["rollout.ids"], np.asarray(made[3][1].ids))
        np.testing.assert_array_equal(arrays["prompts.uid"], np.asarray(made[3][0].uid))
    err = capsys.readouterr().err
    assert f"step 4: non-finite gradient, update skipped (1 in all); its batch is in {kept[0]}" in err
    # The checkpoint from before is intact: it is the one that the next start goes on from.
    session = open_session(cfg, tmp_path / "run", rl=True, buffer=collect.empty_buffer)
    session.close()
    assert (session.start, int(session.state.skipped)) == (4, 1)


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


@pytest.mark.parametrize(
    ("field", "limit", "metric", "good", "bad", "said"),
    [
        ("latent_share_below", 0.1, "rollout/latent_share", 0.1, 0.05, "latent share is 0.05, below logging.alarms.latent_share_below=0.1"),
        ("invalid_above", 0.5, "rollout/invalid_frac", 0.5, 0.75, "invalid is 0.75, above logging.alarms.invalid_above=0.5"),
        ("replay_gap_above", 0.1, "policy/replay_gap", 0.0, float("nan"), "replay gap is nan, above logging.alarms.replay_gap_above=0.1"),
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
