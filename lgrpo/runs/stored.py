"""What a checkpoint stores, and reading it: trees as flat dicts of dotted names, and the four items of a step's folder."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lgrpo.errors import UserError
from lgrpo.runs import integrity
from lgrpo.types import Params, TrainState


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by dotted name; None and empty containers have no leaves. Errors: ValueError when two names coincide."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("checkpoint: two leaves have the same dotted name; rename a dict key that contains a dot")
    return flat


def unflatten(target: Any, flat: dict[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(target), [flat[name] for name in flatten(target)])


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, type and placement of a target leaf; without a placement, the first device. Errors: ValueError when it does not divide."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    sharding.shard_shape(np.shape(leaf))  # raises here, where it cannot be taken for a damaged file
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)


def split(state: TrainState) -> tuple[Params, TrainState]:
    return state.params, state.replace(params=None)


def stored_arrays(manager: ocp.CheckpointManager, step: int, item: str) -> dict[str, Any]:
    """Name -> array metadata of a stored item. Errors: ValueError when they cannot be read."""
    metadata = manager.item_metadata(step)[item]
    if metadata is None or metadata.tree is None:
        raise ValueError(f"{item} has no readable metadata")
    return dict(metadata.tree)


def require_same(stored: dict[str, Any], target: dict[str, jax.ShapeDtypeStruct], where: str, *, dtypes: bool) -> None:
    """Errors: UserError naming the first tensor that differs."""
    mend = "use the model settings that the checkpoint was made with (its config.json)"
    for name in sorted(stored.keys() | target.keys()):
        if name not in stored or name not in target:
            side = "this model but not in the checkpoint" if name in target else "the checkpoint but not in this model"
            raise UserError(f"{where}: tensor {name} is in {side}; {mend}")
        theirs, ours = stored[name], target[name]
        if tuple(theirs.shape) != tuple(ours.shape):
            raise UserError(
                f"{where}: tensor {name} has shape {tuple(theirs.shape)} in the checkpoint and {tuple(ours.shape)} in this model; {mend}"
            )
        if dtypes and np.dtype(theirs.dtype) != np.dtype(ours.dtype):
            raise UserError(
                f"{where}: tensor {name} is {np.dtype(theirs.dtype)} in the checkpoint and {np.dtype(ours.dtype)} in this model; {mend}"
            )


def read_arrays(manager: ocp.CheckpointManager, step: int, item: str, target: Any, where: str, *, dtypes: bool = True) -> Any:
    """One stored item in the structure, types and placement of `target`, a tree of abstract leaves."""
    wanted = flatten(target)
    require_same(stored_arrays(manager, step, item), wanted, where, dtypes=dtypes)
    return unflatten(target, manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(wanted)}))[item])


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    integrity.verify_here(manager.directory / str(step), ["meta"])
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    if not isinstance(meta, dict):
        raise ValueError("meta is no JSON object")
    return meta


def read_buffer(manager: ocp.CheckpointManager, step: int, target: Any, meta: dict[str, Any]) -> Any:
    """Arrays in the structure of `target` (None: a dict by dotted name), with the shapes that were stored: NumPy, and placed as the global arrays of
    the target are."""
    if meta["buffer"] is None:
        return None
    flat = {name: np.zeros(shape, dtype) for name, (shape, dtype) in meta["buffer"]["empty"].items()}
    if meta["buffer"]["full"]:
        asked, shapes = flatten(target), {}
        for name, m in stored_arrays(manager, step, "buffer").items():
            like = asked.get(name)
            placed = isinstance(like, jax.Array)
            shapes[name] = jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=like.sharding) if placed else np.empty(m.shape, m.dtype)
        flat |= manager.restore(step, args=ocp.args.Composite(buffer=ocp.args.StandardRestore(shapes))).buffer
    return flat if target is None else unflatten(target, flat)
