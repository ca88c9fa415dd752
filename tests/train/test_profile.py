"""train.profile_steps: the trace of a tiny run has the named parts of a step; only the steps that were asked for are traced."""

import re

import jax
import pytest
from invariants.test_resume import config

from lgrpo.config.overrides import apply_diff, load_experiment
from lgrpo.config.validate import require_valid
from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.train import rl
from lgrpo.train.profile import Profile

SCOPES = ("prefill", "decode", "sample", "replay", "vocabulary", "optimizer")


def test_a_trace_has_the_parts_of_a_step(tmp_path):
    fast = {"train.diagnostics": "off", "algo.dynamic.enabled": False, "rollout.max_new_tokens": 7}  # 7: no program of another test
    cfg = apply_diff(config(tmp_path / "data"), fast | {"train.num_steps": 1, "train.profile_steps": (1, 2)})
    assert rl.run(cfg, tmp_path / "run") == 0
    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    found = trace.read_bytes()
    for scope in SCOPES:
        assert re.search(rf"jit\([\w.]+\)[^\x00]*[/(]{scope}[/)]".encode(), found), scope


@pytest.mark.parametrize("bucket", [False, True])
def test_only_the_steps_asked_for(monkeypatch, tmp_path, bucket):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    monkeypatch.setattr(storage, "remote", lambda path: bucket)
    monkeypatch.setattr(storage, "upload", lambda source, target: calls.append(("upload", source, target)))
    cfg = apply_diff(config(tmp_path / "data"), {"train.profile_steps": (3, 5)})
    with Profile(cfg, tmp_path) as profile:
        for step in range(1, 8):
            calls.append(step)
            profile.before(step)
    folder = calls[3][1]
    uploaded = [("upload", folder, tmp_path / "profile")] if bucket else []
    assert calls == [1, 2, 3, ("start", folder), 4, 5, ("stop",), *uploaded, 6, 7]
    assert (folder == tmp_path / "profile") != bucket
    calls.clear()
    with Profile(cfg, tmp_path) as profile:
        profile.before(4)  # resumed inside, and ended there
    assert [call[0] for call in calls[:2]] == ["start", "stop"]


def test_steps_that_are_none_are_refused():
    cfg = apply_diff(load_experiment("experiments/demo/latent_grpo.py"), {"train.profile_steps": (13, 10)})
    with pytest.raises(UserError, match=r"train.profile_steps=\(13, 10\).*\(10, 13\)"):
        require_valid(cfg, device_count=1, kind="train")


def test_a_trace_that_a_bucket_does_not_take_stays_here(monkeypatch, tmp_path, capsys):
    def away(*_):
        raise OSError("the bucket is away")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    monkeypatch.setattr(storage, "remote", lambda path: True)
    monkeypatch.setattr(storage, "upload", away)
    with Profile(apply_diff(config(tmp_path / "data"), {"train.profile_steps": (1, 2)}), tmp_path) as profile:
        profile.before(1)
    said = capsys.readouterr().err
    assert "profile: not written (the bucket is away); the trace lies in " in said and "\n" not in said.strip()
