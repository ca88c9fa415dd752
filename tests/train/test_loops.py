"""What the loops compute on the host around their jitted steps, against arithmetic by hand: times, held-out losses, what stops early, what starts where."""

from types import SimpleNamespace

import pytest
from support import change, tiny

from lgrpo.runs.metrics import METRICS
from lgrpo.train import chain, rl, sft
from lgrpo.train.collect import Timer
from lgrpo.types import Mean


@pytest.mark.parametrize("rounds", [None, 2.0])
def test_times_of_a_step(rounds):
    cfg = tiny(train__prompts_per_step=3, rollout__group_size=4)
    metrics = {"rollout/completion_tokens": 5.0} | ({"dynamic/rounds": rounds} if rounds else {})
    found = rl._timing(Timer({"rollout": 2.0, "grade": 0.5, "train": 1.0}), 4.0, metrics, cfg)
    assert found == {
        "time/rollout_s": 2.0,
        "time/grade_s": 0.5,
        "time/train_s": 1.0,
        "time/step_s": 4.0,
        "time/host_frac": 0.25,
        "perf/tokens_per_s": 5.0 * 3 * 4 * (rounds or 1.0) / 2.0,  # of all generations, as their seconds are
    }
    assert found.keys() <= METRICS.keys()


@pytest.mark.parametrize("stage", ["explicit", "latent", "union"])
def test_held_out_losses_are_weighted_over_batches_and_choose_the_best(stage, monkeypatch):
    """Two batches with unlike counts. Where nothing can be sampled yet, the best step is that of the lowest cross-entropy."""
    parts = {"a": (Mean(6.0, 3), Mean(1.0, 2)), "b": (Mean(4.0, 1), Mean(5.0, 4))}
    monkeypatch.setattr(sft, "put_batch", lambda batch, mesh: batch)
    monkeypatch.setattr(sft, "sft_losses", lambda params, batch, *, cfg: parts[batch])
    monkeypatch.setattr(sft, "sft_weights", lambda params, cfg: params)
    monkeypatch.setattr(sft, "evaluation_metrics", lambda *_: {"eval/pass@1_sampled": 0.75})
    session = SimpleNamespace(cfg=tiny(sft__stage=stage, evaluation__every=1), mesh=None)
    stop = SimpleNamespace(agreed=lambda: False)
    metrics, measured = sft.validation(session, SimpleNamespace(params={}), ["a", "b"], 1, stop)
    assert metrics["sft/heldout_ce"] == 10 / 4
    assert ("sft/heldout_kl" in metrics) == (stage == "latent") and metrics.get("sft/heldout_kl", 1.0) == 1.0
    assert measured == (-10 / 4 if stage == "union" else 0.75)
    assert metrics.keys() <= METRICS.keys() | {"eval/pass@1_sampled"}
    session.cfg = change(session.cfg, evaluation__every=2)
    assert sft.validation(session, SimpleNamespace(params={}), ["a", "b"], 1, stop) == ({}, None)


@pytest.mark.parametrize("patience", [0, 3])
def test_a_stage_starts_from_the_best_of_one_that_stopped_early(tmp_path, monkeypatch, patience):
    (tmp_path / "encoder" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(chain, "saved_extra", lambda path: {"finished": True})
    monkeypatch.setattr(chain, "saved_config", lambda path: tiny(sft__patience=patience))
    cfg = chain.stage_config(tiny(), "decoder", tmp_path)
    assert (cfg.sft.stage, cfg.train.init_from, cfg.train.init_best) == ("decoder", str(tmp_path / "encoder"), patience > 0)
