"""Device mesh, logical axes and placement. One dict maps logical axes to mesh axes; nothing is replicated silently."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lgrpo.config import MeshConfig
from lgrpo.config.validate import mesh_sizes
from lgrpo.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axes of parameters and their mesh axis. None: never sharded.
TRAIN_RULES: dict[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "norm": None,
    "rank": None,
}
# Decoding reads every weight at every step, so weights are gathered once per RL step rather than once per token.
ROLLOUT_RULES: dict[str, str | None] = TRAIN_RULES | {"embed": None}


def make_mesh(cfg: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh (data, fsdp, tensor) over `devices` (default: all). One axis may be -1. Errors: UserError when the sizes do not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(cfg, len(devices))
    if sizes is None:
        raise UserError(
            f"mesh: {dict(zip(AXES, (cfg.data, cfg.fsdp, cfg.tensor), strict=True))} cannot be laid over {len(devices)} devices; "
            "set one of --mesh.data, --mesh.fsdp, --mesh.tensor to -1 or to sizes whose product is the number of devices"
        )
    return Mesh(arrange(devices, sizes), AXES)


def platform() -> str:
    """Where the program that is traced will run: platform of the mesh's devices, or of the default one where there is no mesh."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def arrange(devices: list[jax.Device], sizes: tuple[int, int, int]) -> np.ndarray:
    """Devices as [data, fsdp, tensor]. Slices of TPUs lie along data, outermost: only gradients cross the slow network between them.

    Errors: UserError when the slices do not divide data.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        on_tpu = devices[0].platform == "tpu" and len(devices) == jax.device_count()
        return mesh_utils.create_device_mesh(sizes, devices) if on_tpu else np.asarray(devices).reshape(sizes)
    data, fsdp, tensor = sizes
    if data % slices:
        near = data // slices * slices or slices
        raise UserError(
            f"mesh.data={data}: the devices are in {slices} slices, which lie along data, so it must be a multiple of {slices}; use {near}"
        )
    return mesh_utils.create_hybrid_device_mesh((data // slices, fsdp, tensor), (slices, 1, 1), devices)


def partition_spec(name: str, shape: tuple[int, ...], axes: tuple[str, ...], rules: dict[str, str | None], mesh: Mesh) -> PartitionSpec:
    """Placement of one tensor. Errors: ValueError for an unknown logical axis, a mesh axis used twice, a size that does not divide."""
    used: list[str] = []
    entries: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        if axis not in rules:
            raise ValueError(f"{name}: logical axis {axis!r} has no rule; known are {sorted(rules)}")
        target = rules[axis]
        if target is not None:
            if target in used:
                raise ValueError(f"{name}: mesh axis {target!r} is used for two dimensions of {axes}")
            if size % mesh.shape[target]:
                raise ValueError(f"{name}: axis {axis}={size} is not divisible by mesh axis {target}={mesh.shape[target]}")
            used.append(target)
        entries.append(target)
    return PartitionSpec(*entries)


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is cut: devices along data and fsdp."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(tree: Any, mesh: Mesh) -> Any:
    """Arrays [B, ...] -> device arrays sharded along B. Errors: ValueError when B does not divide.

    Host arrays must be the same on every process; each sends only the rows of its own devices.
    """
    ways = batch_ways(mesh)
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[0] % ways:
            raise ValueError(f"batch of {leaf.shape[0]} rows does not divide over data*fsdp={ways} devices")
    placed = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, placed)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, placed)
        return jax.make_array_from_callback(leaf.shape, placed, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def constrain(x: jax.Array, *spec: Any) -> jax.Array:
    """Pins a value inside jit to a placement on the mesh set by jax.set_mesh. A no-op only when no mesh is set. spec: entries of a PartitionSpec."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def constrain_batch(x: jax.Array, axis: int = 0) -> jax.Array:
    """One axis over data and fsdp, when it divides: prompts of a small evaluation batch may not."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[axis] % batch_ways(mesh):
        return x
    return constrain(x, *[None] * axis, BATCH_AXES)
