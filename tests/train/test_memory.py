"""`check --memory`: what the compiler predicts is what a process takes, and the known tensors are those of the sharding table."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flags import flags
from support import change, tiny

from lgrpo.__main__ import main
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXACT
from lgrpo.errors import UserError
from lgrpo.models.spec import largest_array
from lgrpo.sharding import make_mesh
from lgrpo.train import setup
from lgrpo.train.layout import layout
from lgrpo.train.memory import memory_table, phase_of, predict, programs, target_devices
from lgrpo.train.setup import abstract_state, trained_specs

ROOT = Path(__file__).parents[2]
# One device; buffers are assigned before LLVM sees anything, so that its effort changes no number here.
PROBE = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XLA_FLAGS": flags(1), "MALLOC_MMAP_THRESHOLD_": "65536"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_predicted_within_a_fifth_of_what_a_process_takes():
    done = subprocess.run([sys.executable, ROOT / "tests/train/memory_probe.py"], env=PROBE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for phase, measured in found["measured"].items():
        assert found["predicted"][phase] == pytest.approx(measured, rel=0.2), found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_saves_are_predicted_too(tmp_path):
    """A whole process: updates, three saves beside updates, a restore and an update after it. Of a save the timing is not ours: at most."""
    command = [sys.executable, ROOT / "tests/train/save_probe.py", tmp_path]
    done = subprocess.run(command, env=PROBE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    measured, predicted = found["measured"], found["predicted"]
    assert predicted["update"] == pytest.approx(measured["update"], rel=0.25), found
    assert 0.6 * predicted["update beside a save"] < measured["update beside a save"] < 1.2 * predicted["update beside a save"], found
    assert measured["update beside a save"] > 1.2 * predicted["update"], "a save costs nothing: the prediction can go"
    assert measured["restore and update"] < 1.2 * predicted["update beside a save"], found


def of_rl(cfg, which, devices=None):
    """One phase of RL: 0 the rollout, 1 the update."""
    mesh = make_mesh(cfg.mesh, devices or jax.devices())
    with jax.set_mesh(mesh):
        return phase_of(programs(cfg, mesh, rl=True)[which])


def small(**fields):
    return apply_diff(tiny(train__prompts_per_step=8, mesh__data=2, mesh__fsdp=2, mesh__tensor=2, **fields), EXACT)


def test_an_update_over_slices_holds_one_tree_of_gradients_and_copies_no_moments():
    """Of a model whose weights are large beside its batch: gradients, and one pass of their norm. A tree per slice, or old moments beside new ones,
    are more."""
    large = {"model__d_model": 64, "model__d_ff": 2048, "model__n_layers": 4}
    cfg = tiny(**large, rollout__max_new_tokens=4, rollout__latent__max_latent=2, train__microbatch=2, mesh__data=1)
    update = of_rl(cfg, 1, jax.devices()[:1])
    weights = 4 * 4 * 3 * 64 * 2048
    assert weights < update.temporary < 2.5 * weights


def test_arguments_are_the_tensors_of_the_table():
    cfg = small(algo__kl_coef=0.1)
    rollout, update = predict(cfg, jax.devices(), rl=True)
    rows = layout(cfg, 8, rl=True)
    state = sum(r.bytes for r in rows if r.part != "rollout")
    groups, length, k = 8 // 4, cfg.rollout.max_new_tokens, cfg.rollout.latent.k
    samples = groups * cfg.rollout.group_size
    # Of TrainBatch: prompts; ids, scores and weights; three flags; logps, advantages; three numbers a sample, one of them a flag.
    prompts = groups * (cfg.data.max_prompt * 5 + 4)
    batch = samples * (length * (k * 12 + 4 * 1 + 2 * 4) + 9)
    # What the update does not read (finish, old end flags, ...) the compiler drops.
    assert state <= update.arguments <= state + prompts + batch
    published = sum(r.bytes for r in rows if r.part == "rollout")
    assert rollout.arguments >= published
    assert update.outputs < state / 10  # the state is donated


def test_weights_that_are_not_copied_count_once():
    cfg = apply_diff(tiny(train__prompts_per_step=8, mesh__data=8), EXACT)
    rollout = of_rl(cfg, 0)
    rows = layout(cfg, 8, rl=True)
    assert rollout.resident == sum(r.bytes for r in rows if r.part in ("optimizer", "counters"))
    halved = of_rl(change(cfg, model__dtype="bfloat16"), 0)
    assert halved.resident == sum(r.bytes for r in rows if r.part in ("params", "optimizer", "counters"))


@pytest.mark.parametrize("stage", ["explicit", "latent"])
def test_supervised_training(stage):
    cfg = small(sft__stage=stage, sft__batch_size=8)
    (update,) = predict(cfg, jax.devices(), rl=False)
    assert update.arguments > sum(r.bytes for r in layout(cfg, 8, rl=False)) and update.temporary > 0


def compiled(program, mesh):
    with jax.set_mesh(mesh):
        return program.lower().compile()


@pytest.mark.parametrize("rl", [False, True])
def test_an_update_writes_into_the_buffers_of_its_state(rl):
    """Each of them, frozen tables and the reference included: one that is left out is there twice."""
    cfg = apply_diff(tiny(mesh__data=1, algo__kl_coef=0.1), EXACT)
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    header = compiled(programs(cfg, mesh, rl=rl)[-1], mesh).as_text().split("\n", 1)[0]
    written = {int(number) for number in re.findall(r"\((\d+), \{\}, (?:may|must)-alias\)", header)}
    assert written == set(range(len(jax.tree.leaves(abstract_state(cfg, mesh, rl=rl)))))


def test_a_start_writes_into_the_buffers_of_its_weights(monkeypatch):
    """Parameters and two moments, and nothing beside them."""
    cfg, made, start = tiny(mesh__data=1), [], setup.fresh_params
    monkeypatch.setattr(setup, "fresh_params", lambda *args, **more: made.append(start(*args, **more)) or made[-1])
    state = setup.fresh_state(cfg, make_mesh(cfg.mesh, jax.devices()[:1]), rl=False)
    assert all(x.is_deleted() for x in jax.tree.leaves(made)) and not any(x.is_deleted() for x in jax.tree.leaves(state))


def test_the_largest_array_of_a_state_is_known_before_there_is_one():
    cfg = small(algo__kl_coef=0.1)
    leaves = jax.tree.leaves(abstract_state(cfg, make_mesh(cfg.mesh), rl=True))
    assert largest_array(trained_specs(cfg, rl=True), cfg.model) == max(x.size * x.dtype.itemsize for x in leaves)


def test_slices_and_longer_chunks_show():
    cfg = small(model__vocab_size=512, rollout__max_new_tokens=32)
    cfg = change(cfg, train__prompts_per_step=32, train__logprob_chunk=1 << 20)
    peak = of_rl(cfg, 1).peak
    assert of_rl(change(cfg, train__logprob_chunk=32), 1).peak < 0.7 * peak
    assert of_rl(change(cfg, train__microbatch=8), 1).peak < 0.7 * peak


def test_command_line(capsys):
    assert main_code("check", "experiments/demo/latent_grpo.py", "--memory", "--devices", "1", "--train.prompts-per-step", "2") == 0
    out = capsys.readouterr().out
    assert "compiled for 1 x cpu" in out and "K/V cache" in out and "\nupdate" in out


def main_code(*argv):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lgrpo", *argv])
        with pytest.raises(SystemExit) as stopped:
            main()
    return stopped.value.code


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="9 devices wanted, 8 here"):
        target_devices("", 9)
    with pytest.raises(UserError, match=r"--target v5e:nonsense.*libtpu"):
        target_devices("v5e:nonsense", 0)
    with pytest.raises(UserError, match="kv_heads"):
        memory_table(tiny(mesh__tensor=4), jax.devices(), rl=True)
    with pytest.raises(UserError, match="microbatch"):
        memory_table(tiny(train__microbatch=3, mesh__data=1), jax.devices()[:1], rl=True)
    if importlib.util.find_spec("libtpu"):
        with pytest.raises(UserError, match="has 4 devices, not 8"):
            target_devices("v5e:2x2", 8)
