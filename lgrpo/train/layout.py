"""Where every tensor of an experiment lies on a mesh that need not exist: python -m lgrpo check EXPERIMENT --mesh-table N."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding

from lgrpo.config import ExperimentConfig
from lgrpo.config.machine import settle_dtype
from lgrpo.config.validate import mesh_sizes
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.errors import UserError
from lgrpo.models.spec import param_shardings, param_specs, spec_abstract
from lgrpo.runs.metrics import summary_table
from lgrpo.sharding import AXES, ROLLOUT_RULES, batch_ways, replicated
from lgrpo.train.setup import state_shardings, trained_specs
from lgrpo.train.steps.update import init_state

COLUMNS = ("tensor", "shape", "type", "sharding", "bytes per device")


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor. part: params, optimizer, reference, counters or rollout."""

    part: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    bytes: int


def _spec_text(sharding: NamedSharding) -> str:
    """Mesh axes by dimension, - for a whole one; `replicated` where nothing is split."""
    axes = ["-" if a is None else a if isinstance(a, str) else "+".join(a) for a in sharding.spec]
    return ", ".join(axes) if any(a != "-" for a in axes) else "replicated"


def _row(part: str, name: str, leaf: Any, sharding: NamedSharding) -> Row:
    size = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return Row(part, name, leaf.shape, str(leaf.dtype), _spec_text(sharding), size)


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by dotted name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _part(name: str) -> str:
    head = name.partition(".")[0]
    return {"params": "params", "opt_state": "optimizer", "reference": "reference"}.get(head, "counters")


def abstract_mesh(cfg: ExperimentConfig, devices: int) -> AbstractMesh:
    """cfg.mesh over so many devices. Errors: UserError when it cannot be laid over them."""
    sizes = mesh_sizes(cfg.mesh, devices)
    if sizes is None:
        wanted = ", ".join(f"{axis}={getattr(cfg.mesh, axis)}" for axis in AXES)
        raise UserError(f"mesh ({wanted}) cannot be laid over {devices} devices; set one of the axes to -1")
    return AbstractMesh(sizes, AXES)


def layout(cfg: ExperimentConfig, devices: int, *, rl: bool) -> list[Row]:
    """Every tensor of the training state, and of the weights that a rollout reads. cfg must be resolved; allocates nothing.

    Errors: UserError for a mesh that does not fit, or naming the tensor whose axis does not divide.
    """
    mesh = abstract_mesh(cfg, devices)
    try:
        placed = state_shardings(cfg, mesh, rl=rl)
        published = param_shardings(cfg.model, mesh, ROLLOUT_RULES)
    except ValueError as error:
        raise UserError(f"{devices} devices: {error}; see `python -m lgrpo check EXPERIMENT --devices {devices}`") from error
    specs = spec_abstract(trained_specs(cfg, rl=rl), cfg.model)
    state = _flat(jax.eval_shape(lambda p: init_state(p, cfg, rl=rl), specs))
    where = _flat(placed)
    rows = [_row(_part(name), name, leaf, where[name]) for name, leaf in state.items()]
    if rl:
        computed = dataclasses.replace(cfg.model, param_dtype=cfg.model.dtype)
        weights = _flat(spec_abstract(param_specs(cfg.model), computed))
        rows += [_row("rollout", name, weights[name], sharding) for name, sharding in _flat(published).items()]
    return rows


def _moments(rows: list[Row], params: dict[str, Row]) -> tuple[dict[str, list[Row]], list[Row]]:
    """Optimizer rows by the parameter they belong to, placed as it is; and all others."""
    own: dict[str, list[Row]] = {name: [] for name in params}
    other = []
    for row in rows:
        owner = next((p for name, p in params.items() if row.name.endswith("." + name.removeprefix("params."))), None)
        if owner is not None and (row.shape, row.spec) == (owner.shape, owner.spec):
            own[owner.name].append(row)
        else:
            other.append(row)
    return own, other


def _batch_line(cfg: ExperimentConfig, mesh: AbstractMesh, rl: bool) -> str:
    ways = batch_ways(mesh)
    field, rows = ("train.prompts_per_step", cfg.train.prompts_per_step) if rl else ("sft.batch_size", cfg.sft.batch_size)
    if rl and rows % cfg.train.updates_per_step == 0:
        field, rows = f"{field} / updates_per_step", rows // cfg.train.updates_per_step
    if rows % ways == 0:
        return f"batch: {field} = {rows}, over data+fsdp: {rows // ways} per device group of {mesh.shape['tensor']}"
    near = [n for n in (rows // ways * ways, (rows // ways + 1) * ways) if n]
    return f"batch: {field} = {rows} does not divide over data*fsdp = {ways}; use {' or '.join(map(str, near))}"


def table(cfg: ExperimentConfig, devices: int, *, rl: bool) -> str:
    """The layout as text: a row per parameter, its moments beside it, then whatever is placed in another way, and sums. Errors: as layout."""
    cfg, _ = settle_dtype(cfg)
    if not cfg.model.vocab_size:
        cfg = resolve(cfg, load_tokenizer(cfg.data))
    mesh, rows = abstract_mesh(cfg, devices), layout(cfg, devices, rl=rl)
    by_part = {part: [r for r in rows if r.part == part] for part in ("params", "optimizer", "reference", "counters", "rollout")}
    params = {r.name: r for r in by_part["params"]}
    own, other = _moments(by_part["optimizer"], params)
    published = {f"params.{r.name}": r for r in by_part["rollout"]}
    columns = ["tensor", "shape", "type", "training", "bytes", "moments"] + (["rollout", "bytes in rollout"] if rl else [])
    lines = []
    for name, row in params.items():
        shape = "x".join(map(str, row.shape)) or "scalar"
        line = [name.removeprefix("params."), shape, row.dtype, row.spec, f"{row.bytes:,}", f"{sum(m.bytes for m in own[name]):,}"]
        if rl:
            there = published.get(name.replace("params.base.", "params."))  # adapters are merged there
            line += [there.spec, f"{there.bytes:,}"] if there else ["-", "0"]
        lines.append(line)
    sums = {part: sum(r.bytes for r in part_rows) for part, part_rows in by_part.items()}
    shape = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in AXES)
    text = [f"{devices} devices: {shape}", _batch_line(cfg, mesh, rl), summary_table(lines, columns)]
    # Scalars are not worth a line each, as long as they are where scalars belong.
    whole = _spec_text(replicated(mesh))
    rest = [r for r in [*other, *by_part["counters"]] if r.shape or r.spec != whole]
    text += [f"{r.name}: {'x'.join(map(str, r.shape))} {r.dtype}, {r.spec}, {r.bytes:,} bytes" for r in rest]
    text.append("bytes per device: " + ", ".join(f"{part} {size:,}" for part, size in sums.items() if size))
    return "\n".join(text)
