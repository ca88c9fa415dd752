"""Real training and evaluation: an ablation whose run is killed in the middle and taken up again gives the table of one that was not."""

import json
import shutil
from pathlib import Path

import forks
from flags import flags

from lgrpo.ablate.grid import load_grid, plan
from lgrpo.ablate.jobs import read_times
from lgrpo.ablate.run import Slot, run_jobs
from lgrpo.ablate.table import write_table

# `python -m lgrpo` with rewards by chance (an untrained model solves nothing), that kills itself after its second checkpoint, once.
RUN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {lgrpo!r})
import numpy as np
from lgrpo.__main__ import main
from lgrpo.runs.checkpoint import Checkpoints
from lgrpo.train import rl

honest, save = rl.score, Checkpoints.save
once = Path({root!r}) / "kill"


def score(rollout, *rest):
    scored = honest(rollout, *rest)
    luck = np.asarray(rollout.tokens)[:, 2] % 2 == 0
    return scored.replace(rewards=luck.astype(np.float32), valid=np.ones_like(luck))


def saving(self, step, *rest, **more):
    save(self, step, *rest, **more)
    if step == 2 and "two_sided/seed0" in sys.argv[2] and once.exists():
        self.wait()
        once.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


rl.score, Checkpoints.save = score, saving
main()
"""
EXPERIMENT = """
from lgrpo.config import *


def get_config():
    return ExperimentConfig(
        name="tiny",
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        data=DataConfig(difficulty="mini", data_dir={data!r}, max_prompt=32),
        rollout=RolloutConfig(group_size=4, max_new_tokens=4, latent=LatentConfig(k=4, max_latent=1)),
        algo=AlgoConfig(invalid="keep"),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(num_steps=3, prompts_per_step=8),
        checkpoint=CheckpointConfig(every=1),
        evaluation=EvaluationConfig(problems=8, batch=8, samples=2, bootstrap=100),
        logging=LoggingConfig(tensorboard=False, progress=False),
    )
"""


def test_a_killed_run_changes_nothing_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags())  # one device is enough, and starts faster
    python, where = forks.command(tmp_path / "run.py")
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    files = {
        "run.py": RUN.format(root=str(tmp_path), lgrpo=str(Path(__file__).parents[2])),
        "experiment.py": EXPERIMENT.format(data=str(tmp_path / "data")),
    }
    files |= {"grid.py": 'GRID = {"one_sided": {}, "two_sided": {"rollout.latent.law.one_sided": False}}', "kill": ""}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    grid = load_grid(tmp_path / "grid.py")

    def go(folder):
        todo = plan(tmp_path / "experiment.py", grid, [0], {}, folder)
        return todo, run_jobs(todo, [Slot()], folder, python=tuple(python))

    def tables(folder, todo):
        write_table(grid, todo, folder)
        return [(folder / f"ablation.{kind}").read_bytes() for kind in ("md", "csv", "json")]

    parts, whole = tmp_path / "parts", tmp_path / "whole"
    todo, outcome = go(parts)
    assert (outcome.code, len(outcome.finished), list(outcome.failed)) == (1, 1, ["two_sided/seed0"])
    assert "train: killed by SIGKILL" in outcome.failed["two_sided/seed0"]
    # The other run had no interruption: it serves for the whole ablation too.
    shutil.copytree(parts, whole, ignore=shutil.ignore_patterns("two_sided"))
    todo, outcome = go(parts)
    assert (outcome.code, outcome.finished) == (0, ["two_sided/seed0"])
    assert read_times(todo[-1])["train"]["starts"] == 2
    assert "at step 2" in (parts / "two_sided" / "seed0" / "train.log").read_text()
    uninterrupted, outcome = go(whole)
    assert (outcome.code, outcome.finished) == (0, ["two_sided/seed0"])
    assert tables(parts, todo) == tables(whole, uninterrupted)
    # Common random numbers: a seed's cells begin on the same prompts, and their numbers differ by the noise's side alone.
    rows = json.loads((parts / "ablation.json").read_text())["every_metric"]
    assert any(abs(d["value"]) > 0 for d in rows[1]["differences"].values())
