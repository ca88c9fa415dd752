"""The runner and the table of an ablation, on runs that only write their files (fake.py); test_real_runs.py has real ones."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from lgrpo.__main__ import run as lgrpo
from lgrpo.ablate import table as ablation_table
from lgrpo.ablate.grid import find_grid, load_grid, parse_seeds, parse_set, plan
from lgrpo.ablate.jobs import read_times
from lgrpo.ablate.run import Slot, make_slots, own_cores, run_jobs
from lgrpo.ablate.table import write_table
from lgrpo.config.overrides import load_experiment, to_json
from lgrpo.errors import UserError
from lgrpo.evaluation.compare import compare
from lgrpo.report.ablation import read_ablation

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "experiments" / "demo" / "latent_grpo.py"
FAKE = (sys.executable, str(Path(__file__).with_name("fake.py")))
FILES = ("ablation.md", "ablation.csv", "ablation.json")


def grid_file(folder, text):
    path = folder / "grid.py"
    path.write_text(text)
    return path


def two_cells(folder, seeds=(0, 1)):
    grid = load_grid(grid_file(folder, 'GRID = {"plain": {}, "better": {"optim.lr": 1e-4}}'))
    return grid, plan(DEMO, grid, seeds, {"train.init_from": "starts/{seed}"}, folder / "out")


def order(folder, **orders):
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out" / "orders.json").write_text(
        json.dumps({name.replace("__", "/").replace("_at_", ":"): what for name, what in orders.items()})
    )


def calls(folder):
    return [json.loads(line) for line in (folder / "out" / "calls").read_text().splitlines()]


def go(todo, folder, slots=None):
    return run_jobs(todo, slots or [Slot()], folder / "out", python=FAKE)


def tables(grid, todo, folder):
    write_table(grid, todo, folder / "out")
    return [(folder / "out" / name).read_bytes() for name in FILES]


# -- grids --------------------------------------------------------------------------------------------------------------------------------


def test_axes_multiply_and_seeds_share_everything_but_the_seed(tmp_path):
    path = grid_file(
        tmp_path,
        """
COMMON = {"rollout.latent.k": 4}
AXES = {"a": {"x": {"optim.lr": 1e-4}, "y": {"optim.lr": 1e-3}}, "b": {"p": {}, "q": {"train.updates_per_step": 2}}}
GRID = {"alone": {"rollout.latent.k": 2, "train.init_from": "{init_from}/../explicit_sft"}}
BASE = "x-q"
""",
    )
    grid = load_grid(path)
    assert (list(grid.cells), grid.base) == (["alone", "x-p", "x-q", "y-p", "y-q"], "x-q")
    jobs = plan(DEMO, grid, [3, 5], parse_set(["train.num_steps=7", "train.init_from=runs/seed{seed}/latent_sft"]), tmp_path)
    assert [job.name for job in jobs[:5]] == ["alone/seed3", "x-p/seed3", "x-q/seed3", "y-p/seed3", "y-q/seed3"]
    assert {job.cfg.train.num_steps for job in jobs} == {7}
    by_name = {job.name: job.cfg for job in jobs}
    assert by_name["alone/seed5"].train.init_from == "runs/seed5/explicit_sft"
    one = by_name["y-q/seed5"]
    assert (one.train.init_from, one.optim.lr, one.train.updates_per_step, one.rollout.latent.k) == ("runs/seed5/latent_sft", 1e-3, 2, 4)
    assert (one.seed, by_name["x-p/seed5"].seed, by_name["alone/seed5"].rollout.latent.k) == (5, 5, 2)


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "experiments" / "sweeps").glob("[!_]*.py")))
def test_every_grid_of_the_project_can_be_trained(name, tmp_path):
    grid = load_grid(find_grid(name, DEMO))
    assert len(plan(DEMO, grid, [0], {}, tmp_path)) == len(grid.cells) >= 3


def test_stabilizers_end_in_naive_latent_grpo(tmp_path):
    jobs = plan(DEMO, load_grid(find_grid("stabilizers", DEMO)), [0], {}, tmp_path)
    naive = load_experiment(ROOT / "experiments" / "ablations" / "naive_latent.py")
    paper = load_experiment(ROOT / "experiments" / "ablations" / "paper.py")
    assert len(jobs) == 8
    for job, same in ((jobs[0], paper), (jobs[-1], naive)):
        assert to_json(job.cfg) | {"name": ""} == to_json(same) | {"name": ""}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "neither GRID nor AXES"),
        ("GRID = 3", "GRID is a int"),
        ("GRID = {'a': 3}", "difference is a int"),
        ("GRID = {'a/b': {}}", "not a name for a cell"),
        ("GRID = {'a': {}}\nAXES = {'b': {'a': {'seed': 1}}}", "a: more than one cell"),
        ("GRID = {'a': {}, 'A': {}}", "more than one cell"),
        ("GRID = {'a': {}}\nBASE = 'b'", "base 'b' is no cell; use one of a"),
        ("GRID = {'a': {}, 'b': {'optim.lrr': 1.0}}", "cell b: optim.lrr: no such config field; did you mean optim.lr?"),
        ("GRID = {'a': {'optim.lr': 'x'}}", "cell a: optim.lr: 'x' is a str"),
        ("GRID = {'a': {}, 'b': {'optim.lr': 3e-4}}", "cells a and b are duplicates"),
        ("GRID = {'a': {'seed': 3}}", "cell a: sets seed"),
        ("GRID = {'a': {'rollout.latent.law.one_sided': True}}", "cell a: rollout.latent.law.one_sided: no such setting of the law Exact"),
        ("AXES = {'a': {'x': {'optim.lr': 1.0}}, 'b': {'y': {'optim.lr': 2.0}}}", "'y' sets optim.lr, which another axis"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
    ],
)
def test_mistakes_in_a_grid_are_named(tmp_path, text, says):
    with pytest.raises(UserError) as error:
        lgrpo(["ablate", str(DEMO), "--grid", str(grid_file(tmp_path, text)), "--workdir", str(tmp_path / "out")])
    assert says in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--grid", "stabilisers"], "did you mean stabilizers?"),
        (["--grid", "presets", "--set", "optim.lrr=1"], "did you mean optim.lr?"),
        (["--grid", "presets", "--set", "optim.lr"], "give section.field=value"),
        (["--grid", "presets", "--seeds", "0"], "no seed"),
        (["--grid", "presets", "--seeds", "1,1"], "more than once"),
        (["--grid", "presets", "--seeds", "a"], "give how many"),
        (["--grid", "presets", "--jobs", "4096"], "use at most"),
        (["--grid", "presets", "--cells", "papers"], "no cell of the grid presets; it has paper"),
        (["--grid", "no/such.py"], "no such grid file"),
        ([], "--grid"),
    ],
)
def test_mistakes_in_the_options_are_named(tmp_path, more, says):
    with pytest.raises(UserError) as error:
        lgrpo(["ablate", str(DEMO), "--workdir", str(tmp_path / "out"), *more])
    assert says in str(error.value)


def test_small_parsers():
    assert (parse_seeds("3"), parse_seeds("0,4"), parse_seeds("7,")) == ([0, 1, 2], [0, 4], [7])
    assert parse_set(["a.b-c=(1, 2)", "d=None", "e=x=y"]) == {"a.b_c": (1, 2), "d": None, "e": "x=y"}


def test_dry_run_prints_the_commands_and_starts_nothing(tmp_path, capsys):
    text = ["ablate", str(DEMO), "--grid", "presets", "--seeds", "1", "--cells", "exact", "--workdir", str(tmp_path / "out"), "--dry-run"]
    assert lgrpo(text) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 runs: 2 cells, seeds 0")
    assert f"-m lgrpo eval {tmp_path}/out/exact/seed0/experiment.py --workdir {tmp_path}/out/exact/seed0" in lines[-1]
    assert not (tmp_path / "out").exists()


# -- the runner ---------------------------------------------------------------------------------------------------------------------------


def test_cores_are_shared_evenly():
    assert [slot.cores for slot in make_slots(0, (), [0, 1, 5])] == [(0,), (1,), (5,)]
    assert [slot.cores for slot in make_slots(2, (), [0, 1, 2, 3, 4])] == [(0, 1), (2, 3)]
    assert [str(slot) for slot in make_slots(0, ["a", "b"], [0])] == ["a", "b"]


def test_runs_stay_on_their_cores(tmp_path):
    _, todo = two_cells(tmp_path)
    core = own_cores()[-1]
    assert go(todo, tmp_path, [Slot(cores=(core,))]).code == 0
    assert {tuple(call["cores"]) for call in calls(tmp_path)} == {(core,)}
    assert {call["init_from"] for call in calls(tmp_path)} == {"starts/0", "starts/1"}


def test_finished_runs_are_skipped_and_others_settings_refused(tmp_path):
    _, todo = two_cells(tmp_path)
    assert sorted(go(todo, tmp_path).finished) == sorted(job.name for job in todo)
    before = len(calls(tmp_path))
    outcome = go(todo, tmp_path)
    assert (outcome.finished, len(outcome.skipped), len(calls(tmp_path))) == ([], 4, before)
    assert read_times(todo[0])["train"]["starts"] == 1
    grid = load_grid(tmp_path / "grid.py")
    other = plan(DEMO, grid, [0], {"optim.lr": 0.5}, tmp_path / "out")
    with pytest.raises(UserError, match="finished with other settings"):
        go(other, tmp_path)


def test_a_failed_run_is_reported_and_the_rest_goes_on(tmp_path, capsys):
    grid, todo = two_cells(tmp_path)
    order(tmp_path, plain__seed0_at_train="fail", better__seed1_at_eval="kill")
    outcome = go(todo, tmp_path)
    assert (outcome.code, sorted(outcome.finished)) == (1, ["better/seed0", "plain/seed1"])
    assert "exit code 1; error: it does not work" in outcome.failed["plain/seed0"]
    assert "eval: killed by SIGKILL" in outcome.failed["better/seed1"]
    capsys.readouterr()
    partial = json.loads(tables(grid, todo, tmp_path)[2])["rows"]
    assert [row["runs"] for row in partial] == ["1 of 2", "1 of 2"]
    assert partial[1]["differences"] == {}  # no seed has both cells
    again = go(todo, tmp_path)
    assert (again.code, sorted(again.finished)) == (0, ["better/seed1", "plain/seed0"])


def test_exit_75_passes_through(tmp_path):
    _, todo = two_cells(tmp_path)
    order(tmp_path, better__seed0_at_train="preempted")
    outcome = go(todo, tmp_path)
    assert (outcome.code, outcome.interrupted, len(outcome.finished)) == (75, ["better/seed0"], 3)
    assert go(todo, tmp_path).finished == ["better/seed0"]


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_ablate import go, two_cells
sys.exit(go(two_cells(Path({folder!r}))[1], Path({folder!r})).code)
"""


@pytest.mark.parametrize(("how", "code"), [("kill_ablation", -9), ("stop_ablation", 75)])
def test_an_interrupted_ablation_gives_the_same_table(tmp_path, how, code):
    """The ablation's process itself is killed, or told to stop, while a run trains."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    grid, todo = two_cells(tmp_path / "whole")
    assert go(todo, tmp_path / "whole").code == 0
    order(tmp_path / "parts", plain__seed1_at_train=how)
    text = DRIVER.format(here=str(Path(__file__).parent), folder=str(tmp_path / "parts"))
    assert subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=120, check=False).returncode == code
    grid, parts = two_cells(tmp_path / "parts")
    # The killed ablation's run still holds the lock, unless it was ended with it.
    outcome = go(parts, tmp_path / "parts")
    assert (outcome.code, len(outcome.skipped), len(outcome.finished)) == (0, 2, 2)
    assert tables(grid, parts, tmp_path / "parts") == tables(grid, todo, tmp_path / "whole")


def test_hosts_are_reached_through_ssh(tmp_path, monkeypatch):
    """A stand-in for ssh that runs the command line here, as a remote shell would."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/ssh.log\nfor last; do :; done\nenv -i PATH="$PATH" sh -c "$last"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu and 'quotes'")
    (tmp_path / "with space").mkdir()
    monkeypatch.chdir(tmp_path / "with space")
    _, todo = two_cells(tmp_path)
    assert go(todo, tmp_path, make_slots(2, ["left", "right"], [])).code == 0
    lines = (tmp_path / "ssh.log").read_text().splitlines()
    assert len(lines) == 8
    assert all(line.startswith(("-tt -o BatchMode=yes left cd", "-tt -o BatchMode=yes right cd")) for line in lines)
    assert all("JAX_PLATFORMS=" in line and f"{tmp_path}/with space" in line for line in lines)
    assert {len(call["cores"]) for call in calls(tmp_path)} == {max(len(own_cores()) // 2, 1)}


# -- the table ----------------------------------------------------------------------------------------------------------------------------


def test_numbers_of_the_table(tmp_path):
    """Against scipy's paired t-test, against compare where there is one seed, and in all three files."""
    grid, todo = two_cells(tmp_path, seeds=(0, 1, 2))
    go(todo, tmp_path)
    tables(grid, todo, tmp_path)
    out = tmp_path / "out"
    whole = json.loads((out / "ablation.json").read_text())
    plain, better = whole["every_metric"]

    def value(cell, seed, name="pass@1"):
        return json.loads((out / cell / f"seed{seed}" / "eval" / "eval.json").read_text())["sampled"][name]["value"]

    a, b = ([value(cell, seed) for seed in range(3)] for cell in ("plain", "better"))
    change = better["differences"]["sampled/pass@1"]
    test = stats.ttest_rel(b, a).confidence_interval(0.95)
    np.testing.assert_allclose([change[k] for k in ("value", "low", "high")], [np.mean(b) - np.mean(a), test.low, test.high], rtol=1e-9)
    one = stats.t.interval(0.95, 2, np.mean(a), stats.sem(a))
    cell = plain["metrics"]["sampled/pass@1"]
    np.testing.assert_allclose([cell[k] for k in ("value", "low", "high")], [np.mean(a), *one], rtol=1e-9)
    assert cell["by_seed"] == [[seed, x] for seed, x in enumerate(a)]
    rewards = [json.loads(line)["reward/mean"] for line in (out / "plain" / "seed0" / "metrics.jsonl").read_text().splitlines()]
    assert plain["metrics"]["train/reward/mean"]["by_seed"][0][1] == pytest.approx(np.mean(rewards[-2:]))
    assert not any(name.startswith("train/time") for name in plain["metrics"])

    lines = list(csv.DictReader((out / "ablation.csv").open()))
    (line,) = [x for x in lines if (x["cell"], x["metric"]) == ("better", "sampled/pass@1")]
    assert float(line["difference_high"]) == change["high"]
    assert float(line["difference_over_problems_low"]) == change["over_problems"]["low"]
    assert f"{change['value']:.4f} [{change['low']:.4f}, {change['high']:.4f}]" in (out / "ablation.md").read_text()

    assert better["settings"] == "optim.lr=0.0001"
    assert "| better | `optim.lr=0.0001` |" in (out / "ablation.md").read_text()

    read = read_ablation(out / "ablation.json")
    assert [row.name for row in read.rows] == ["plain", "better"]
    assert read.rows[1].differences["sampled/pass@1"] == {key: change[key] for key in ("value", "low", "high")}
    assert read.rows[1].metrics["sampled/pass@1"]["value"] == pytest.approx(np.mean(b))

    single = [job for job in todo if job.seed == 1]
    write_table(grid, single, out)
    change = json.loads((out / "ablation.json").read_text())["every_metric"][1]["differences"]["sampled/pass@1"]
    (known,) = [row for row in compare(out / "plain" / "seed1", out / "better" / "seed1") if row["pass"] == "sampled"]
    assert change["over_problems"] == known["difference"]
    assert (change["low"], change["high"]) == (None, None)


def test_differences_over_problems_are_of_all_seeds():
    """Seeds that point to different sides: their mean, not the first of them."""
    rng = np.random.default_rng(0)
    sides = [[rng.random(20) for _ in range(3)] for _ in range(2)]
    base, cell = (
        [SimpleNamespace(metrics={"noise_free/pass@1": x.mean()}, problems={"noise_free/pass@1": x}, gold={0: "1"}) for x in side]
        for side in sides
    )
    found = ablation_table._difference("noise_free/pass@1", list(zip(base, cell, strict=True)))
    assert found["over_problems"]["value"] == pytest.approx(np.mean(sides[1]) - np.mean(sides[0]))
    assert found["value"] == pytest.approx(np.mean(sides[1]) - np.mean(sides[0]))
