"""What a checkpoint must survive: kills, damaged files, another mesh, another model, buffers that change size."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from states import CFG, KEEP, make_state, same, save

from lgrpo.config import CheckpointConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.errors import UserError
from lgrpo.runs import retention
from lgrpo.runs.checkpoint import Checkpoints, load_params, saved_config, write_config
from lgrpo.types import PromptBatch


def shard(tree, shape):
    """Split what divides over (fsdp, tensor) of a mesh of that shape, everything else is on all of its devices."""
    mesh = Mesh(np.asarray(jax.devices()[: shape[0] * shape[1]]).reshape(shape), ("fsdp", "tensor"))
    spec = lambda x: PartitionSpec("fsdp", "tensor") if x.ndim == 2 and x.shape[0] % 8 == 0 else PartitionSpec()  # noqa: E731
    return jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), tree)


def abstract(state, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


@pytest.fixture
def run(tmp_path):
    """Opens the checkpoints of one workdir, as often as asked, and closes them."""
    opened = []

    def open_again(cfg=KEEP):
        opened.append(Checkpoints(tmp_path, cfg))
        return opened[-1]

    yield open_again
    for ckpt in opened:
        ckpt.close()


def damage(folder, item):
    """Truncate every data file of a stored item to half."""
    files = [f for f in (folder / item).rglob("*") if f.is_file() and f.stat().st_size > 0 and f.name != "commit_success.txt"]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_everything_comes_back_bit_for_bit(run):
    state = make_state(reference=True, dtype=jnp.bfloat16)
    first = run()
    save(first, 3, state=state, best=0.5, names=["a"])
    first.close()
    got = run().restore(state, None, CFG)
    same(got.state, state)
    assert (got.step, got.data, got.extra, got.buffer) == (3, {"position": 3}, {"best": 0.5, "names": ["a"]}, None)
    # Python containers of the optimizer state matter: the restored one must go straight into the same jitted step.
    assert type(got.state.opt_state) is type(state.opt_state)


def test_arrays_above_the_limit_of_what_is_in_flight(tmp_path, monkeypatch):
    """A table of 1B parameters is larger than the limit. Orbax raises for an array that does not fit below it, in a save and in a restore."""
    monkeypatch.setattr(retention, "IN_FLIGHT", 256)
    state = make_state()
    ckpt = Checkpoints(tmp_path, KEEP, max(x.nbytes for x in jax.tree.leaves(state)))
    save(ckpt, 3, state=state)
    same(ckpt.restore(state, None, CFG).state, state)
    ckpt.close()


def test_a_save_holds_the_values_of_its_moment_although_the_loop_goes_on(run):
    ckpt = run()
    state, buffer = make_state(), {"x": np.arange(5)}
    expect = jax.tree.map(lambda x: np.array(x), state)
    save(ckpt, 3, state=state, buffer=buffer)
    buffer["x"][:] = -1
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
    got = ckpt.restore(jax.tree.map(jnp.asarray, expect), None, CFG)
    same(got.state, jax.tree.map(jnp.asarray, expect))
    np.testing.assert_array_equal(got.buffer["x"], np.arange(5))


@pytest.mark.parametrize(("before", "after"), [((8, 1), (1, 1)), ((1, 1), (4, 2)), ((2, 4), (4, 2))])
def test_restores_onto_another_mesh(run, before, after):
    state = make_state()
    ckpt = run()
    save(ckpt, 3, state=jax.device_put(state, shard(state, before)))
    target = abstract(state, shard(state, after))
    got = ckpt.restore(target, None, CFG)
    same(got.state, state)
    assert all(x.sharding == t.sharding for x, t in zip(jax.tree.leaves(got.state), jax.tree.leaves(target), strict=True))


@pytest.mark.parametrize("rows", [0, 3])
def test_buffers_of_any_size_fit_one_target(run, rows):
    def groups(n):
        return {
            "prompts": PromptBatch(np.ones((n, 4), np.int32), np.ones((n, 4), bool), np.arange(n, dtype=np.int32)),
            "age": np.zeros(n, np.float32),
        }

    ckpt = run()
    save(ckpt, 3, buffer=groups(rows))
    got = ckpt.restore(make_state(), groups(1), CFG).buffer
    same(got, groups(rows))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(got))


def test_keeps_the_newest_and_the_best(run, tmp_path):
    ckpt = run()
    for step, metric in enumerate([0.2, 0.9, float("nan"), None, 0.9, 0.1], 1):
        save(ckpt, step, metric)
    ckpt.wait()
    assert (sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()), ckpt.best(), ckpt.latest()) == ([2, 5, 6], 2, 6)
    ckpt.close()
    again = run()  # the best is known to the next process too
    save(again, 7, 0.95)
    again.wait()
    assert (sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()), again.best()) == ([6, 7], 7)


def test_without_keep_best_only_the_newest_stay(run, tmp_path):
    ckpt = run(CheckpointConfig(keep=1, keep_best=False))
    for step, metric in enumerate([0.9, 0.1, 0.2], 1):
        save(ckpt, step, metric)
    ckpt.wait()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_saving_a_step_twice_keeps_the_first(run):
    ckpt = run()
    save(ckpt, 3, first=True)
    save(ckpt, 3, first=False)
    assert ckpt.restore(make_state(), None, CFG).extra == {"first": True}


@pytest.mark.parametrize("item", ["params", "rest", "meta"])
def test_a_damaged_newest_checkpoint_falls_back_and_is_kept_aside(run, tmp_path, capsys, item):
    ckpt = run()
    save(ckpt, 3)
    save(ckpt, 6)
    ckpt.close()
    damage(tmp_path / "checkpoints" / "6", item)
    again = run()
    got = again.restore(make_state(), None, CFG)
    assert got.step == 3
    same(got.state, make_state(3))
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0
    assert "checkpoints/6: cannot be read" in err
    assert (tmp_path / "unreadable" / "6" / item).is_dir()
    # The run goes on and reaches the step again, which must be saved, not skipped as already there.
    save(again, 6, again=True)
    again.close()
    assert run().restore(make_state(), None, CFG).extra == {"again": True}


def test_with_nothing_readable_nothing_is_moved(run, tmp_path):
    ckpt = run()
    save(ckpt, 3)
    ckpt.close()
    damage(tmp_path / "checkpoints" / "3", "params")
    with pytest.raises(UserError, match="none of the checkpoints"):
        run().restore(make_state(), None, CFG)
    assert (tmp_path / "checkpoints" / "3").is_dir()
    assert not (tmp_path / "unreadable").exists()


def test_an_unfinished_save_is_never_chosen(run, tmp_path):
    ckpt = run()
    save(ckpt, 3)
    ckpt.close()
    left = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    (left / "params").mkdir(parents=True)
    again = run()
    assert again.restore(make_state(), None, CFG).step == 3
    save(again, 6)  # what the killed save left behind is not in the way
    assert again.restore(make_state(), None, CFG).step == 6


def test_a_placement_that_does_not_divide_is_no_damage(run, tmp_path):
    ckpt = run()
    save(ckpt, 3)
    save(ckpt, 6)
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("fsdp",))
    target = abstract(make_state(), jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), make_state()))
    target.params["blocks"]["wq"] = jax.ShapeDtypeStruct((2, 8, 4), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    with pytest.raises(ValueError, match="8"):
        ckpt.restore(target, None, CFG)
    assert not (tmp_path / "unreadable").exists()


def test_running_out_of_memory_is_no_damage(run, monkeypatch, tmp_path):
    ckpt = run()
    save(ckpt, 3)
    save(ckpt, 6)
    ckpt.wait()
    monkeypatch.setattr("lgrpo.runs.checkpoint.read_arrays", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("RESOURCE_EXHAUSTED")))
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        ckpt.restore(make_state(), None, CFG)
    assert not (tmp_path / "unreadable").exists()


def test_another_config_is_refused_before_any_array_is_read(run, tmp_path):
    ckpt = run()
    save(ckpt, 3)
    ckpt.close()
    damage(tmp_path / "checkpoints" / "3", "params")
    with pytest.raises(UserError, match=r"algo\.clip_low: 0\.2 in the checkpoint, 0\.1 now"):
        run().restore(make_state(), None, apply_diff(CFG, {"algo.clip_low": 0.1}))
    assert (tmp_path / "checkpoints" / "3").is_dir()


def test_the_budget_may_change(run):
    ckpt = run()
    save(ckpt, 3)
    assert ckpt.restore(make_state(), None, apply_diff(CFG, {"train.num_steps": 1, "mesh.fsdp": 8})).step == 3


def test_another_model_is_a_mistake_not_damage(run, tmp_path):
    ckpt = run()
    save(ckpt, 3)
    save(ckpt, 6)
    with pytest.raises(UserError) as caught:
        ckpt.restore(make_state(width=10), None, CFG)
    assert "\n" not in str(caught.value)
    assert "(2, 8)" in str(caught.value)
    assert "(2, 10)" in str(caught.value)
    with pytest.raises(UserError, match="float32 in the checkpoint and bfloat16"):
        ckpt.restore(make_state(dtype=jnp.bfloat16), None, CFG)
    with pytest.raises(UserError, match=r"reference\.blocks\.norm is in this model but not in the checkpoint"):
        ckpt.restore(make_state(reference=True), None, CFG)
    assert not (tmp_path / "unreadable").exists()


def test_not_resuming_refuses_a_used_workdir(run, tmp_path):
    ckpt = run()
    save(ckpt, 3)
    ckpt.wait()
    with pytest.raises(UserError, match=r"checkpoint\.resume=False"):
        Checkpoints(tmp_path, dataclasses.replace(KEEP, resume=False))


def test_restoring_an_empty_workdir_and_an_absent_step(run):
    ckpt = run()
    assert ckpt.latest() is None
    with pytest.raises(UserError, match="no checkpoint there"):
        ckpt.restore(make_state(), None, CFG)
    save(ckpt, 3)
    save(ckpt, 6)
    assert ckpt.restore(make_state(), None, CFG, step=3).step == 3
    with pytest.raises(UserError, match=r"\[4\] can be read"):
        ckpt.restore(make_state(), None, CFG, step=4)


def test_what_json_cannot_hold_is_refused_at_once(run):
    ckpt = run()
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(ckpt, 3, bad=np.float32(1))
    assert ckpt.latest() is None


@pytest.mark.parametrize("folder", ["", "checkpoints"])
def test_load_params_takes_only_the_parameters(run, tmp_path, folder):
    ckpt = run()
    save(ckpt, 3, 0.9)
    save(ckpt, 6, 0.1)
    ckpt.close()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    target = jax.eval_shape(lambda: make_state().params)
    same(load_params(tmp_path / folder, target), make_state(6).params)
    same(load_params(tmp_path / folder, target, best=True), make_state(3).params)
    half = jax.eval_shape(lambda: make_state(dtype=jnp.bfloat16).params)
    same(load_params(tmp_path / folder, half), jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state(6).params))
    placed = abstract(target, shard(target, (2, 4)))
    assert load_params(tmp_path / folder, placed)["embed"].sharding == placed["embed"].sharding
    assert saved_config(tmp_path / folder) == CFG
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before  # reading leaves no trace, the run may still be going on


def test_load_params_names_the_first_tensor_that_differs(run, tmp_path):
    ckpt = run()
    save(ckpt, 3)
    ckpt.close()
    with pytest.raises(UserError, match=r"tensor blocks\.norm has shape \(2, 8\) in the checkpoint and \(2, 6\) in this model"):
        load_params(tmp_path, make_state(width=6).params)
    with pytest.raises(UserError, match="tensor unembed is in this model but not in the checkpoint"):
        load_params(tmp_path, make_state().params | {"unembed": jnp.zeros((8, 16))})
    with pytest.raises(UserError, match="none is the best"):
        load_params(tmp_path, make_state().params, best=True)


def test_load_params_of_a_folder_without_checkpoints(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no checkpoints there"):
            load_params(path, make_state().params)
    assert not (tmp_path / "nowhere").exists()


def test_a_checkpoint_says_what_wrote_it(run, tmp_path):
    ckpt = run()
    save(ckpt, 3)
    ckpt.wait()
    meta = json.loads((tmp_path / "checkpoints" / "3" / "meta" / "metadata").read_text())
    assert meta["versions"]["jax"] == jax.__version__
    write_config(tmp_path, CFG)
    assert json.loads((tmp_path / "config.json").read_text())["config"] == meta["config"]
