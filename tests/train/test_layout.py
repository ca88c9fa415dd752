"""Sharding tables: golden text of the experiments, and that what they promise is what a real mesh gets."""

import difflib
import sys

import jax
import pytest
from golden import make_sharding
from support import change, tiny

from lgrpo.__main__ import main
from lgrpo.errors import UserError
from lgrpo.models.spec import spec_init
from lgrpo.sharding import make_mesh
from lgrpo.train.layout import layout, table
from lgrpo.train.setup import state_shardings, trained_specs
from lgrpo.train.steps.update import init_state


@pytest.mark.parametrize("name", make_sharding.CASES)
def test_golden_tables(name):
    file = make_sharding.FOLDER / f"{name}.txt"
    was, now = file.read_text(), make_sharding.text(name)
    diff = "\n".join(difflib.unified_diff(was.splitlines(), now.splitlines(), "committed", "now", lineterm="", n=0))
    assert was == now, f"if this is meant, run python -m tests.golden.make_sharding and commit {file.name}:\n{diff}"


def test_every_golden_file_has_a_case():
    assert {p.stem for p in make_sharding.FOLDER.iterdir()} == make_sharding.CASES.keys()


def test_a_real_mesh_gets_what_the_table_says():
    cfg = tiny(mesh__data=2, mesh__fsdp=2, mesh__tensor=2, algo__kl_coef=0.1)
    mesh, specs = make_mesh(cfg.mesh), trained_specs(cfg, rl=True)
    state = jax.jit(lambda key: init_state(spec_init(specs, cfg.model, key), cfg, rl=True))(jax.random.key(0))
    state = jax.device_put(state, state_shardings(cfg, mesh, rl=True))
    device = jax.devices()[3]
    held = {
        jax.tree_util.keystr(path, simple=True, separator="."): sum(s.data.nbytes for s in x.addressable_shards if s.device == device)
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }
    assert {r.name: r.bytes for r in layout(cfg, 8, rl=True) if r.part != "rollout"} == held


def test_moments_lie_beside_their_parameters():
    rows = {r.name: r for r in layout(make_sharding.config("gsm8k_llama1b_hybrid"), 64, rl=True)}
    for name, row in rows.items():
        if row.part == "optimizer" and row.shape:
            owner = rows["params." + name.split(".mu.")[-1].split(".nu.")[-1]]
            assert (row.spec, row.shape) == (owner.spec, owner.shape), name


def test_what_does_not_fit_is_explained():
    with pytest.raises(UserError, match="cannot be laid over 8 devices"):
        table(tiny(mesh__data=3), 8, rl=True)
    with pytest.raises(UserError, match="kv_heads=2 is not divisible by mesh axis tensor=4"):
        table(tiny(mesh__tensor=4), 8, rl=True)
    assert "= 4 does not divide over data*fsdp = 8; use 8" in table(tiny(), 8, rl=True)
    assert "= 12 does not divide over data*fsdp = 8; use 8 or 16" in table(change(tiny(), train__prompts_per_step=12), 8, rl=True)


def test_the_command_prints_the_tables(monkeypatch, capsys):
    path = str(make_sharding.ROOT / "demo" / "latent_grpo.py")
    monkeypatch.setattr(sys, "argv", ["lgrpo", "check", path, "--mesh-table", *map(str, make_sharding.DEVICES)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    committed = (make_sharding.FOLDER / "demo_latent_grpo.txt").read_text()
    assert capsys.readouterr().out.strip() == committed.split("\n\n", 1)[1].strip()
