"""Memory of an experiment per device, from the compiler, before anything is allocated: python -m lgrpo check EXPERIMENT --memory.

The programs of a run are compiled for the mesh from shapes alone, so the sums are XLA's own buffer assignment and not a formula of ours. For TPUs
the compiler needs no TPU (package libtpu); for the backend at hand the devices are those of this machine or, on CPU, simulated ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from lgrpo.config import ExperimentConfig
from lgrpo.config.machine import settle_dtype
from lgrpo.config.validate import require_valid
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.errors import UserError
from lgrpo.latent.rollout import empty_record
from lgrpo.models.decoder import compute_params
from lgrpo.models.spec import largest_array, param_shardings
from lgrpo.runs.metrics import summary_table
from lgrpo.runs.retention import in_flight
from lgrpo.sharding import ROLLOUT_RULES, batch_sharding, batch_ways, make_mesh, replicated
from lgrpo.train.layout import layout
from lgrpo.train.setup import abstract_state, trained_specs
from lgrpo.train.steps.rl import group, rollout_step, train_step
from lgrpo.train.steps.sft import sft_step
from lgrpo.train.steps.update import merged_weights
from lgrpo.types import PromptBatch, TrainBatch


@dataclasses.dataclass(frozen=True)
class Phase:
    """Bytes per device while one program runs. resident: what lies there besides its own arguments."""

    name: str
    resident: int
    arguments: int
    outputs: int  # without what overwrites an argument
    temporary: int

    @property
    def peak(self) -> int:
        """Everything at once: the compiler's temporaries are one block."""
        return self.resident + self.arguments + self.outputs + self.temporary


def save_bytes(cfg: ExperimentConfig, devices: int, *, rl: bool) -> int:
    """Bytes of host memory per device while a checkpoint is written: a copy of the state, and as much again on its way to the files, up to a limit.

    Where the device is the host (CPU) the arrays themselves are read, while no update runs: the copy is then the state.
    """
    state = sum(row.bytes for row in layout(cfg, devices, rl=rl) if row.part != "rollout")
    limit = in_flight(largest_array(trained_specs(cfg, rl=rl), cfg.model))
    return state + min(state, 2 * limit)  # two items are written at once: parameters, and the rest


def target_devices(target: str, count: int) -> list[jax.Device]:
    """Devices to compile for. target: "" for the backend at hand, else a TPU topology such as v5e:2x4. count: how many; 0: all there are.

    Errors: UserError when libtpu is missing, the topology unknown or of another size, or fewer devices are there than `count`.
    """
    if target:
        try:
            chips = list(topologies.get_topology_desc(platform="tpu", topology_name=target).devices)
        except Exception as error:  # whatever the plugin raises: nothing else is called here
            hint = "it needs `pip install libtpu`, and a topology such as v5e:2x4, v5p:2x2x2 or v6e:4x4"
            raise UserError(f"--target {target}: {str(error).splitlines()[0]}; {hint}") from error
        if count not in (0, len(chips)):
            raise UserError(f"--target {target} has {len(chips)} devices, not {count}; leave --devices out")
        return chips
    devices = jax.devices()
    if count > len(devices):
        raise UserError(
            f"{count} devices wanted, {len(devices)} here; on CPU, set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[: count or None]


def _bytes(tree: Any) -> int:
    """Bytes per device of abstract arrays with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _placed(tree: Any, where: Any) -> Any:
    """Abstract arrays with a sharding each; one for all, or a tree of them."""
    shardings = jax.tree.map(lambda _: where, tree) if isinstance(where, NamedSharding) else where
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


@dataclasses.dataclass(frozen=True)
class PhaseProgram:
    """A program of a run, for abstract arguments on a mesh."""

    name: str
    lower: Callable[[], Any]  # makes the jax.stages.Lowered
    resident: int  # bytes per device of what lies there besides its arguments


def phase_of(program: PhaseProgram) -> Phase:
    stats = program.lower().compile().memory_analysis()
    return Phase(
        program.name,
        program.resident,
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes - stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
    )


def _prompts(cfg: ExperimentConfig, rows: int) -> PromptBatch:
    shape = (rows, cfg.data.max_prompt)
    return PromptBatch(jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool), jax.ShapeDtypeStruct((rows,), jnp.int32))


def _shared(weights: Any, params: Any) -> int:
    """Bytes of the published weights that are the trained ones themselves."""
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and a.sharding.is_equivalent_to(b.sharding, a.ndim), weights, params)
    return sum(_bytes(w) for w, s in zip(jax.tree.leaves(weights), jax.tree.leaves(same), strict=True) if s)


def abstract_batch(cfg: ExperimentConfig, mesh: Mesh) -> TrainBatch:
    """What an RL step is trained on, as shapes."""
    rows = cfg.train.prompts_per_step
    record = jax.eval_shape(lambda: group(empty_record(rows * cfg.rollout.group_size, cfg.rollout), cfg.rollout.group_size))
    shape = record.mask.shape
    batch = TrainBatch(_prompts(cfg, rows), record, jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, bool))
    return _placed(batch, batch_sharding(mesh))


def _rl_programs(cfg: ExperimentConfig, mesh: Mesh, state: Any) -> list[PhaseProgram]:
    rows, over_batch = cfg.train.prompts_per_step, batch_sharding(mesh)
    computed = jax.eval_shape(lambda p: compute_params(merged_weights(p, cfg.algo.lora), cfg.model), state.params)
    weights = _placed(computed, param_shardings(cfg.model, mesh, ROLLOUT_RULES))
    shared = 0 if cfg.algo.lora.rank else _shared(weights, state.params)
    prompts = _placed(_prompts(cfg, rows), over_batch)
    key = _placed(jax.eval_shape(lambda: jax.random.key(0)), replicated(mesh))
    resident = _bytes(state) - shared
    return [
        PhaseProgram("rollout", lambda: rollout_step.lower(weights, prompts, key, cfg=cfg), resident),
        PhaseProgram("update", lambda: train_step.lower(state, abstract_batch(cfg, mesh), cfg=cfg), 0),
    ]


def abstract_records(cfg: ExperimentConfig) -> dict[str, Any]:
    """A supervised batch as data.pipeline.sft_stream makes it. Of packed rows the most there can be: the table of lengths is not at hand here."""
    rows, chain, k = cfg.sft.batch_size, cfg.sft.max_chain, cfg.rollout.latent.k
    latents = -(-chain // cfg.sft.compression)
    shapes = {"prompt_tokens": (cfg.data.max_prompt,), "chain_tokens": (chain,), "answer_tokens": (cfg.sft.max_answer,)}
    batch = {name: jax.ShapeDtypeStruct((rows, *shape), jnp.int32) for name, shape in shapes.items()}
    batch |= {name.replace("tokens", "mask"): jax.ShapeDtypeStruct((rows, *shape), bool) for name, shape in shapes.items()}
    batch["uid"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
    if cfg.sft.stage == "latent" and cfg.sft.labels == "encoder":
        batch["label_ids"] = jax.ShapeDtypeStruct((rows, latents, k), jnp.int32)
        batch["label_probs"] = jax.ShapeDtypeStruct((rows, latents, k), jnp.float32)
        batch["label_mask"] = jax.ShapeDtypeStruct((rows, latents), bool)
    if cfg.sft.packing and cfg.sft.stage in ("explicit", "latent"):
        steps = (latents if cfg.sft.stage == "latent" else chain) + 1 + cfg.sft.max_answer
        slices = rows // cfg.train.microbatch if cfg.train.microbatch else 1
        for name, width in (("pack_inputs", cfg.data.max_prompt + steps - 1), ("pack_steps", steps)):
            batch[name] = jax.ShapeDtypeStruct((rows // slices, slices, width), jnp.int32)
    return batch


def programs(cfg: ExperimentConfig, mesh: Mesh, *, rl: bool) -> list[PhaseProgram]:
    """The programs of training, to be lowered under jax.set_mesh(mesh). cfg must be resolved. Errors: UserError for a mesh that does not fit."""
    try:
        state = abstract_state(cfg, mesh, rl=rl)
    except ValueError as error:
        raise UserError(f"{mesh.size} devices: {error}") from error
    with jax.set_mesh(mesh):
        if rl:
            return _rl_programs(cfg, mesh, state)
        batch = _placed(abstract_records(cfg), batch_sharding(mesh))
        return [PhaseProgram("update", lambda: sft_step.lower(state, batch, cfg=cfg), 0)]


def predict(cfg: ExperimentConfig, devices: list[jax.Device], *, rl: bool) -> list[Phase]:
    """The phases of training, compiled for `devices`. cfg and errors: as for programs."""
    mesh = make_mesh(cfg.mesh, devices)
    phases = programs(cfg, mesh, rl=rl)
    with jax.set_mesh(mesh):
        return [phase_of(program) for program in phases]


def _parts(cfg: ExperimentConfig, mesh: Mesh, *, rl: bool) -> dict[str, int]:
    """Bytes per device of the tensors whose shapes say what they are."""
    parts: dict[str, int] = {}
    for row in layout(cfg, mesh.size, rl=rl):
        parts[row.part] = parts.get(row.part, 0) + row.bytes
    m, c, t, tensor = cfg.model, cfg.rollout, cfg.train, mesh.shape["tensor"]
    ways = batch_ways(mesh)
    if rl:
        columns = cfg.data.max_prompt + c.group_size * c.max_new_tokens
        size = jnp.dtype(m.dtype if c.kv_dtype == "compute" else c.kv_dtype).itemsize
        parts["K/V cache"] = t.prompts_per_step // ways * columns * 2 * m.n_layers * (m.n_kv_heads // tensor) * m.head_dim * size
        rows, length = (t.microbatch or t.prompts_per_step // t.updates_per_step) * c.group_size, c.max_new_tokens
        # As chunked_logps cuts them.
        parts["logits of a chunk"] = rows // ways * max(1, min(length, t.logprob_chunk // rows)) * (m.vocab_size // tensor) * 4
    return parts


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def checked(cfg: ExperimentConfig, devices: list[jax.Device], *, rl: bool) -> ExperimentConfig:
    """cfg resolved and fit for so many devices. Errors: UserError."""
    cfg, _ = settle_dtype(cfg)
    if not cfg.model.vocab_size:
        cfg = resolve(cfg, load_tokenizer(cfg.data))
    require_valid(cfg, device_count=len(devices), kind="train" if rl else "sft")
    return cfg


def memory_table(cfg: ExperimentConfig, devices: list[jax.Device], *, rl: bool) -> str:
    """What `check --memory` prints: known tensors, then phases, in MiB per device. Errors: as predict."""
    cfg = checked(cfg, devices, rl=rl)
    phases = predict(cfg, devices, rl=rl)
    kind = devices[0].device_kind
    lines = [[p.name, *map(_mib, (p.resident, p.arguments, p.outputs, p.temporary, p.peak))] for p in phases]
    text = [f"MiB per device, compiled for {len(devices)} x {kind}"]
    text.append(
        summary_table(
            [[name, _mib(size)] for name, size in _parts(cfg, make_mesh(cfg.mesh, devices), rl=rl).items()], ["known tensors", "MiB"]
        )
    )
    text.append(summary_table(lines, ["phase", "resident", "arguments", "outputs", "temporary", "peak"]))
    peak, saving = max(p.peak for p in phases), save_bytes(cfg, len(devices), rl=rl)
    text.append(f"peak: {_mib(peak)} MiB")
    beside = ", the state itself included: no update runs beside it here" if kind == "cpu" else ""
    text.append(f"host memory of a save: {_mib(saving)} MiB for each device{beside}")
    if kind == "cpu" and cfg.model.dtype == "bfloat16":
        text.append("on CPU XLA computes bfloat16 in float32, so that temporaries are larger than on an accelerator: see --target")
    return "\n".join(text)
