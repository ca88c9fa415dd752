"""The tables of docs/scaling.md, by arithmetic from shapes: python -m benchmarks.scaling. Nothing is compiled; layouts are those of check --mesh-table.

Weak scaling: the prompts of an update grow with the chips. One row per model and number of chips.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from lgrpo.config import ExperimentConfig, MeshConfig
from lgrpo.config.overrides import apply_diff, load_experiment
from lgrpo.models.presets import LLAMA_3_2_1B
from lgrpo.models.spec import count_params
from lgrpo.runs.metrics import summary_table
from lgrpo.train.cost import CHIPS, needed_rollout
from lgrpo.train.layout import abstract_mesh, layout

CHIP_COUNTS = (8, 64, 512, 4096)
LLAMA_70B = dataclasses.replace(
    LLAMA_3_2_1B, d_model=8192, n_layers=80, n_heads=64, n_kv_heads=8, head_dim=128, d_ff=28672, tie_embeddings=False
)
BUCKET = 1e9
"""Bytes per second that one host writes to a bucket: an assumption, to be replaced by what yours does."""


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    path: str
    chip: str  # a key of CHIPS
    hbm: float  # bytes
    per_host: int  # chips
    fsdp: int
    tensor: int
    prompts: int  # of a step, per group of `tensor` chips
    changes: dict


CASES = (
    Case("1B", "experiments/gsm8k_llama1b.py", "TPU v5 lite", 16e9, 4, 8, 1, 8, {}),
    Case("7B", "experiments/math_qwen7b.py", "TPU v5", 95e9, 4, 8, 1, 4, {}),
    Case("70B", "experiments/math_qwen7b.py", "TPU v5", 95e9, 4, 64, 8, 4, {"model": LLAMA_70B}),
)


def config(case: Case, chips: int) -> ExperimentConfig:
    """The experiment on so many chips: fsdp up to the case's size, what is left along data."""
    cfg = apply_diff(load_experiment(case.path), {k: v for k, v in case.changes.items() if k != "model"})
    groups = chips // case.tensor
    fsdp = min(case.fsdp, groups)
    train = dataclasses.replace(cfg.train, prompts_per_step=case.prompts * groups, microbatch=groups if cfg.train.microbatch else 0)
    mesh = MeshConfig(data=groups // fsdp, fsdp=fsdp, tensor=case.tensor)
    return dataclasses.replace(cfg, train=train, mesh=mesh, model=case.changes.get("model", cfg.model))


def row(case: Case, chips: int) -> list[str]:
    """Per chip and step."""
    cfg, chip = config(case, chips), CHIPS[case.chip]
    m, c, t = cfg.model, cfg.rollout, cfg.train
    rows = layout(cfg, chips, rl=True)
    state = sum(r.bytes for r in rows if r.part != "rollout")
    weights = sum(r.bytes for r in rows if r.part == "rollout")
    groups = chips // case.tensor
    size = jnp.dtype(m.dtype).itemsize
    column = 2 * m.n_layers * (m.n_kv_heads // case.tensor) * m.head_dim * size
    cache = case.prompts * column * (cfg.data.max_prompt + c.group_size * c.max_new_tokens)
    blocks = count_params(m) - (1 if m.tie_embeddings else 2) * m.vocab_size * m.d_model
    positions = case.prompts * (cfg.data.max_prompt + c.group_size * c.max_new_tokens)
    outputs = case.prompts * c.group_size * c.max_new_tokens
    passes = 8 + (2 if cfg.algo.kl_coef else 0)  # forward, again, backward at twice it; the reference
    flop = (passes * blocks * positions + 4 * m.d_model * m.vocab_size * outputs) / case.tensor
    moved = needed_rollout(cfg, abstract_mesh(cfg, chips))
    # Of each slice of an update: weights gathered for both passes, gradients scattered; over data gradients are reduced once an update.
    slices = t.updates_per_step * (t.prompts_per_step // t.updates_per_step // t.microbatch if t.microbatch else 1)
    fsdp, data = cfg.mesh.fsdp, cfg.mesh.data
    own = blocks * size / case.tensor
    sent = slices * 3 * own * (fsdp - 1) / fsdp + t.updates_per_step * 2 * 2 * own / fsdp * (data - 1) / data + own * (fsdp - 1) / fsdp
    if case.tensor > 1:  # two sums a block, forward, again and backward, in the learner and at every decode step
        block = 2 * m.n_layers * m.d_model * size * 2 * (case.tensor - 1) / case.tensor
        sent += block * (3 * positions + case.prompts * c.group_size * c.max_new_tokens)
    checkpoint = state * chips / (data if data else 1)
    seconds = (flop / chip.flop, moved / chip.memory, sent / chip.links)
    hosts = chips // case.per_host
    return [
        case.name,
        str(chips),
        f"{data} x {fsdp} x {case.tensor}",
        str(case.prompts * groups),
        f"{state / 1e9:.1f}",
        f"{weights / 1e9:.1f}",
        f"{cache / 1e9:.1f}",
        f"{(state + weights + cache) / case.hbm:.0%}",
        f"{flop / 1e12:,.0f}",
        f"{moved / 1e9:,.0f}",
        f"{sent / 1e9:,.0f}",
        *(f"{s:.1f}" for s in seconds),
        f"{2 * state * case.per_host / 1e9:.0f}",
        f"{checkpoint / 1e9:,.0f}",
        f"{checkpoint / hosts / BUCKET:.0f}",
    ]


COLUMNS = [
    "model",
    "chips",
    "data x fsdp x tensor",
    "prompts",
    "state GB",
    "weights GB",
    "cache GB",
    "of HBM",
    "TFLOP",
    "rollout GB",
    "sent GB",
]
COLUMNS += ["compute s", "memory s", "network s", "host GB", "checkpoint GB", "save s"]

if __name__ == "__main__":
    print(summary_table([row(case, chips) for case in CASES for chips in CHIP_COUNTS], COLUMNS))
