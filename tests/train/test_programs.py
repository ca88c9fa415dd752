"""What the compiled programs of a run must not do, read from their text: on eight CPU devices, and for a TPU where libtpu is at hand."""

import importlib.util
import math
import os
import sys

import jax
import pytest
from support import tiny

from lgrpo.__main__ import main
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXACT
from lgrpo.sharding import make_mesh
from lgrpo.train import hlo, work
from lgrpo.train.cost import CHIPS, Cost, cost_table, needed_update, tally
from lgrpo.train.memory import programs, target_devices

V, D, SLICES = 1024, 16, 4
SHAPE = {"prompts_per_step": 16, "updates_per_step": 2, "logprob_chunk": 32 * 8 // SLICES}
CFG = apply_diff(
    tiny(model__vocab_size=V, mesh__data=1, mesh__fsdp=8, **{f"train__{k}": v for k, v in SHAPE.items()}),
    EXACT,
)
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install libtpu")


@pytest.fixture(scope="module", params=["cpu", pytest.param("tpu", marks=needs_libtpu)])
def modules(request):
    """Parsed programs by phase, on a mesh of eight with everything over fsdp."""
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several workers of pytest at once
    devices = jax.devices() if request.param == "cpu" else target_devices("v5e:2x4", 0)
    mesh = make_mesh(CFG.mesh, devices)
    with jax.set_mesh(mesh):
        found = {p.name: hlo.parse(p.lower().compile().as_text()) for p in programs(CFG, mesh, rl=True)}
    return found | {"mesh": mesh}


def collectives(module):
    """(collective, how often it runs, loops around it). What shares a channel is one, and runs as often as the least of its parts."""
    seen = {}
    for ran in hlo.runs(module):
        for _, inner in [(ran.computation, ran.instruction), *hlo.inside(module, ran.instruction)]:
            found = work.collective(module, inner)
            if found and (found.channel not in seen or ran.times < seen[found.channel][1]):
                seen[found.channel] = found, ran.times, ran.loops
    return seen.values()


def test_a_decode_step_exchanges_a_few_bytes(modules):
    inside = [found for found, _, loops in collectives(modules["rollout"]) if loops]
    assert inside, "not even the flag that ends the loop: the wrong loops were looked at"
    assert max(found.bytes for found in inside) <= 4096, [f for f in inside if f.bytes > 4096]


def test_the_output_table_is_gathered_once_an_update(modules):
    tables = [
        (f, times) for f, times, _ in collectives(modules["update"]) if any(math.prod(s.dims) >= V * D and V in s.dims for s in f.shapes)
    ]
    assert tables, "the table is spread over eight devices and nobody gathers it?"
    assert sum(times for _, times in tables) <= CFG.train.updates_per_step


def test_a_slice_of_the_log_probs_moves_neither_the_table_nor_its_logits(modules):
    """A TPU lays all logits out anew before a scatter, and again after it."""
    if modules["mesh"].devices.flat[0].platform != "tpu":
        pytest.skip("elsewhere a scatter costs what it writes")
    for ran in hlo.runs(modules["update"]):
        inner = [i for _, i in hlo.inside(modules["update"], ran.instruction) if i.op == "scatter"]
        moving = [ran.instruction] if ran.instruction.op in ("copy", "copy-start", "transpose", "scatter") else inner
        large = [i for i in moving if any(V in s.dims and math.prod(s.dims) >= SHAPE["logprob_chunk"] // 8 * V for s in i.shapes)]
        assert not (ran.loops and large), large


def test_nothing_sorts_the_vocabulary(modules):
    for name in ("rollout", "update"):
        for ran in hlo.runs(modules[name]):
            for where, inner in [(ran.computation, ran.instruction), *hlo.inside(modules[name], ran.instruction)]:
                if inner.op == "sort" or 'custom_call_target="TopK"' in inner.attributes:
                    keys = [s for n in inner.operands for s in where.instructions[n].shapes if s.dtype.startswith(("f", "bf"))]
                    # Sorted indices of a scatter are no logits.
                    assert max((max(s.dims) for s in keys), default=0) < V // 2, inner


def test_a_decode_step_writes_its_column_of_the_cache_and_no_more(modules):
    m, c = CFG.model, CFG.rollout
    groups = CFG.train.prompts_per_step // 8
    dims = sorted((m.n_layers, groups, c.group_size, c.max_new_tokens, m.n_kv_heads, m.head_dim))
    module, touched = modules["rollout"], 0
    for ran in hlo.runs(module):
        if len(ran.loops) != 1 or ran.instruction.op in ("while", "tuple", "get-tuple-element", "parameter", "bitcast"):
            continue
        if whole := [s.size for s in ran.instruction.shapes if sorted(s.dims) == dims]:
            touched += 1
            assert work.memory(module, ran.computation, ran.instruction) < whole[0], ran.instruction
    assert touched or modules["mesh"].devices.flat[0].platform == "tpu"  # there it may stay on the chip


def test_an_update_does_the_work_of_one(modules):
    """Recomputation included (model.remat is off, so that it is that of attention): what is asked for, divided by the devices, and nothing twice."""
    with jax.set_mesh(modules["mesh"]):
        need = needed_update(CFG, modules["mesh"])
    assert 0.9 < tally(modules["update"]).flop / need < 1.35


def test_what_limits_a_phase():
    found = Cost(flop=197e12, memory=819e9 / 2, plain=200e9 / 4)
    assert found.seconds(CHIPS["TPU v5 lite"]) == {"compute": 1.0, "memory": 0.5, "network": 0.25}


def test_command_line(capsys, monkeypatch):
    argv = [
        "lgrpo",
        "check",
        "experiments/demo/latent_grpo.py",
        "--cost",
        "--devices",
        "1",
        "--train.prompts-per-step",
        "1",
        "--model.n-layers",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        main()
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "compiled for 1 x cpu" in out and "no published rates" in out and "\nupdate" in out and "rollout, " in out


@needs_libtpu
def test_seconds_for_a_chip_whose_rates_are_published():
    text = cost_table(CFG, target_devices("v5e:2x4", 0), rl=True)
    assert "network s" in text and "of the three together" in text
