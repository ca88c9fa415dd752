"""An ablation whose workdir lies in a bucket: its table is the one of the same runs on a disk, and nothing runs twice."""

import json
import sys
from pathlib import Path

import pytest
from ablate.test_ablate import DEMO, FAKE, FILES, grid_file

from lgrpo.ablate.grid import load_grid, plan
from lgrpo.ablate.run import Slot, run_jobs
from lgrpo.ablate.table import write_table
from lgrpo.cli.ablate import run as command
from lgrpo.errors import UserError
from lgrpo.runs import storage

AWAY = (sys.executable, str(Path(__file__).with_name("fake_away.py")))


def test_the_table_is_that_of_a_disk(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    grid = load_grid(grid_file(tmp_path, 'GRID = {"plain": {}, "better": {"optim.lr": 1e-4}}'))
    places = {tmp_path / "out": FAKE, bucket / "out": AWAY}
    for workdir, python in places.items():
        todo = plan(DEMO, grid, (0,), {}, workdir)
        outcome = run_jobs(todo, [Slot()], workdir, python=python)
        assert outcome.code == 0 and len(outcome.finished) == 2, outcome.failed
        write_table(grid, todo, workdir)
    for name in FILES:
        assert storage.text_of(bucket / "out" / name) == (tmp_path / "out" / name).read_text()
    seed = bucket / "out" / "better" / "seed0"
    assert storage.text_of(seed / "train.log") == "done\n", "the log of a run is kept beside it"
    assert json.loads(storage.text_of(seed / "cell.json"))["optim"]["lr"] == 1e-4
    again = run_jobs(todo, [Slot()], bucket / "out", python=AWAY)
    assert len(again.skipped) == 2 and not again.finished


def test_other_hosts_would_not_find_the_experiment(bucket):
    from lgrpo.cli.ablate import add_options
    from lgrpo.cli.common import Parser

    parser = Parser(prog="ablate")
    add_options(parser)
    options = parser.parse_args([str(DEMO), "--grid", "presets", "--workdir", str(bucket), "--hosts", "a,b"])
    with pytest.raises(UserError, match=r"--hosts: .* which a bucket does not give them"):
        command(options)
