"""train.profile_steps: the trace of a tiny run has the named parts of a step, and the steps that were asked for."""

import re

import pytest
from invariants.test_resume import config

from lgrpo.config.overrides import apply_diff, load_experiment
from lgrpo.config.validate import require_valid
from lgrpo.errors import UserError
from lgrpo.train import rl

SCOPES = ("prefill", "decode", "sample", "replay", "vocabulary", "optimizer")


def test_a_trace_has_the_parts_of_a_step(tmp_path):
    cfg = apply_diff(config(tmp_path / "data"), {"train.num_steps": 3, "train.profile_steps": (2, 3), "rollout.max_new_tokens": 7})
    assert rl.run(cfg, tmp_path / "run") == 0
    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    found = trace.read_bytes()
    for scope in SCOPES:
        assert re.search(rf"jit\([\w.]+\)[^\x00]*[/(]{scope}[/)]".encode(), found), scope
    steps = list((tmp_path / "run" / "profile").rglob("*.trace.json.gz")) or [trace]
    assert steps


def test_steps_that_are_none_are_refused():
    cfg = apply_diff(load_experiment("experiments/demo/latent_grpo.py"), {"train.profile_steps": (13, 10)})
    with pytest.raises(UserError, match=r"train.profile_steps=\(13, 10\).*\(10, 13\)"):
        require_valid(cfg, device_count=1)
