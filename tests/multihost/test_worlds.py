"""Two and four processes with four devices in all, and this one with its eight: the same run. Only the order in which sums are added over devices
differs (1e-5)."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from multihost.main import lucky
from multihost.worlds import config, run, write_experiment
from support import change

from lgrpo.algos.stage1 import stage1_specs
from lgrpo.config import MeshConfig
from lgrpo.evaluation import evaluate
from lgrpo.models.spec import abstract_params, spec_abstract
from lgrpo.runs import convert, storage
from lgrpo.runs.checkpoint import Checkpoints, load_params, saved_config
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.runs.metrics import read_metrics
from lgrpo.runs.writers.jsonl import SAMPLES
from lgrpo.train import labels, rl, sft

QUIET = ("--evaluation.every", "0", "--checkpoint.every", "1", "--checkpoint.keep", "9")
SAME = {"evaluation__every": 0, "checkpoint__every": 1, "checkpoint__keep": 9}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(experiment file, folder)."""
    folder = tmp_path_factory.mktemp("world")
    return write_experiment(folder, folder / "data"), folder


def lines(workdir):
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in read_metrics(workdir)]


def load_policy(workdir):
    return load_params(workdir, abstract_params(saved_config(workdir).model))


def load_stage1(workdir):
    model = saved_config(workdir).model
    return load_params(workdir, spec_abstract(stage1_specs(model), model))


def assert_same_run(a, b, load=load_policy):
    mine, theirs = lines(a), lines(b)
    assert [x["step"] for x in mine] == [x["step"] for x in theirs] == [1, 2, 3]
    for x, y in zip(mine, theirs, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for x, y in zip(*(jax.tree.leaves(load(w)) for w in (a, b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())


def here(loop, folder, workdir, **fields):
    """In this process, on its eight devices: a process more would cost seconds."""
    cfg = change(config(folder / "data"), mesh=MeshConfig(data=4, fsdp=2), **fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "score", lucky)
        assert loop.run(cfg, workdir) == 0


@pytest.fixture(scope="module")
def sft_alone(world):
    here(sft, world[1], world[1] / "sft_alone")
    return world[1] / "sft_alone"


def test_one_process_then_four_then_one_are_one_run(world):
    """Every checkpoint is restored by another number of processes and devices than wrote it."""
    experiment, folder = world
    parts = folder / "parts"
    here(rl, folder, folder / "alone", **SAME)
    assert steps(folder / "alone") == [1, 2, 3]
    assert sum(x["dynamic/buffered"] for x in lines(folder / "alone")) > 0, "the buffer was never used"
    shutil.copytree(folder / "alone", parts)
    for later in (2, 3):
        shutil.rmtree(parts / "checkpoints" / str(later))
    out = run(4, "train", experiment, "--workdir", parts, *QUIET, "--train.num-steps", 2)
    assert [("reward/mean" in text) for text in out] == [True, False, False, False], "the summary is printed once"
    assert steps(parts)[-1] == 2
    rows = 8 * 4
    assert int(out[0].splitlines()[-1].split()[-2]) <= 4 * rows, "a host holds more of the others' completions than a number each"
    tables = [read_metrics(workdir / SAMPLES)[0]["samples"] for workdir in (folder / "alone", parts)]
    assert len(tables[0]) == 4, "a prompt and its group, of the rows of the main process"
    first, second = ([(x["prompt"], x["gold"], x["answer"], x["finish"]) for x in table] for table in tables)
    assert first == second
    here(rl, folder, parts, **SAME)
    assert_same_run(parts, folder / "alone")


def test_a_signal_to_one_of_two_stops_both_at_the_same_step(world, sft_alone):
    """In the middle of an evaluation, on the process that is not the main one. Saved once, and with the rest of it two processes are as one."""
    experiment, folder = world
    workdir = folder / "preempted"
    run(2, "sft", experiment, "--workdir", workdir, code=EXIT_PREEMPTED, interrupt="lgrpo.evaluation.measure:_rollout:1:1")
    assert steps(workdir) == [2] and [x["step"] for x in lines(workdir)] == [1]
    run(2, "sft", experiment, "--workdir", workdir)
    assert_same_run(workdir, sft_alone)
    assert "eval/pass@1" in lines(workdir)[-1]
    checkpoints = Checkpoints(workdir, config("").checkpoint)
    assert checkpoints.best() == 2
    checkpoints.close()


def test_two_processes_make_labels_and_convert(world):
    """Stage 1, its labels, export and import, in one pair of processes. Labels and files are those of this process, from the same weights."""
    experiment, folder = world
    parts, own = folder / "chain", ("--data.train-split", "train[:40]", "--data.eval-split", "test[:16]")
    cfg = change(
        config(folder / "data"), mesh=MeshConfig(data=4, fsdp=2), data__train_split="train[:40]", data__eval_split="test[:16]",
        sft__stage="union", evaluation__every=0,
    )  # fmt: skip
    stage1 = ("sft", experiment, "--workdir", parts / "union", *own, "--sft.stage", "union", "--evaluation.every", 0)
    made = ("sft", experiment, "--workdir", parts, *own, "--stage", "labels")
    out = ("export-hf", parts / "union", folder / "hf2"), ("import-hf", folder / "hf2", "--workdir", folder / "imported2")
    text = run(2, *stage1, "then", *made, "then", *out[0], "then", *out[1])
    assert ["model.safetensors" in x for x in text] == [True, False]
    assert sft.run(cfg, folder / "union1") == 0
    assert_same_run(parts / "union", folder / "union1", load_stage1)

    assert labels.run(labels.with_source(cfg, str(parts / "union"), best=False), folder / "labels1") == 0
    for split in ("train[:40]", "test[:16]"):  # the last batch of the first is short
        mine, theirs = (np.load(where / split / "labels.npz") for where in (parts / "labels", folder / "labels1"))
        np.testing.assert_array_equal(mine["ids"], theirs["ids"])
        np.testing.assert_allclose(mine["probs"], theirs["probs"], rtol=1e-5, atol=1e-6)
        assert (mine["probs"].sum(-1) > 0).any() and mine["uid"].tolist() == theirs["uid"].tolist() == [*range(len(mine["uid"]))]

    convert.export_hf(parts / "union", folder / "hf1")
    convert.import_hf(str(folder / "hf1"), folder / "imported1")
    names = storage.files_below(folder / "hf1")
    assert names == storage.files_below(folder / "hf2") and "model.safetensors" in names
    assert all((folder / "hf1" / name).read_bytes() == (folder / "hf2" / name).read_bytes() for name in names)
    one, two = (load_policy(folder / name) for name in ("imported1", "imported2"))
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


def test_two_processes_evaluate_a_checkpoint(world, sft_alone):
    """Row for row what the eight devices of this process find."""
    experiment, folder = world
    out = run(2, "eval", experiment, "--workdir", sft_alone)
    assert ["pass@1" in text for text in out] == [True, False]
    cfg = config(folder / "data")
    assert evaluate.run(dataclasses.replace(cfg, mesh=MeshConfig(data=8)), sft_alone, out="here") == 0
    assert (sft_alone / "here" / "eval.jsonl").read_text() == (sft_alone / "eval" / "eval.jsonl").read_text()
