"""experiments.study: the command it starts for a grid, and that a signal reaches it. The starts are the demo's stages, which tests/experiments runs."""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments.study import __main__ as study
from lgrpo.errors import UserError

CHILD = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def options(tmp_path, **more):
    common = {
        "seeds": "2",
        "steps": 5,
        "problems": 7,
        "jobs": 1,
        "hosts": "",
        "cells": "",
        "set": [],
        "start_set": [],
        "suffix": "",
        "sft_steps": 0,
    }
    return argparse.Namespace(workdir=tmp_path, grids=["presets"], **common | more)


def started(monkeypatch, child):
    """Commands that study starts; each runs `child` instead."""
    commands, real = [], subprocess.Popen

    def popen(command, **settings):
        commands.append(command)
        return real(child, **settings)

    monkeypatch.setattr(study.subprocess, "Popen", popen)
    return commands


def test_command_has_the_settings(monkeypatch, tmp_path):
    commands = started(monkeypatch, [sys.executable, "-c", "raise SystemExit(1)"])
    assert study.ablate(options(tmp_path, set=["optim.lr=1e-4"], suffix="slow", cells="paper"), "presets") == 1
    (command,) = commands
    assert command[1:4] == ["-m", "lgrpo", "ablate"] and pathlib.Path(command[4]).name == "latent_grpo.py"
    at = command.index("--set")
    wanted = ["train.num_steps=5", f"train.init_from={tmp_path}/starts/seed{{seed}}/latent_sft", "evaluation.problems=7"]
    assert command[at + 1 : at + 4] == wanted and "optim.lr=1e-4" in command[at:]
    assert command[command.index("--workdir") + 1] == str(tmp_path / "presets_slow")


def test_starts_of_their_own(monkeypatch, tmp_path):
    """Settings of the starts reach both stages; only those of the model reach the cells, whose start they have to match."""
    commands = started(monkeypatch, [sys.executable, "-c", "raise SystemExit(0)"])
    given = options(tmp_path, start_set=["model.vocab_size=512", "sft.label_noise=0.25"], suffix="large")
    made = {}
    monkeypatch.setattr(study, "finish_stage", lambda cfg, folder, loop: made.update({folder: cfg}) or {})
    assert study.make_starts(given, [3])
    assert {(cfg.model.vocab_size, cfg.sft.label_noise) for cfg in made.values()} == {(512, 0.25)}
    assert set(made) == {tmp_path / "starts_large" / "seed3" / name for name in ("explicit_sft", "latent_sft")}
    study.ablate(given, "presets")
    (command,) = commands
    assert f"train.init_from={tmp_path}/starts_large/seed{{seed}}/latent_sft" in command and "model.vocab_size=512" in command
    assert not any(word.startswith("sft.") for word in command)
    with pytest.raises(UserError, match="--suffix"):
        study.run(options(tmp_path, start_set=["model.vocab_size=512"]))


def test_a_signal_stops_the_grid_and_its_code_comes_back(monkeypatch, tmp_path):
    ready = tmp_path / "ready"
    started(monkeypatch, [sys.executable, "-c", CHILD, str(ready)])

    def interrupt():
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    assert study.ablate(options(tmp_path), "presets") == 75


def test_an_interrupted_grid_ends_the_study_without_a_report(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "make_starts", lambda *_: True)
    started(monkeypatch, [sys.executable, "-c", "raise SystemExit(75)"])
    monkeypatch.setattr(study, "write_report", lambda *_, **__: pytest.fail("nothing to report yet"))
    assert study.run(options(tmp_path)) == 75
