"""Checkpoints on Orbax: the whole state of a run in one atomic folder per step.

`<workdir>/checkpoints/<step>/` holds four items: `params`; `rest` (optimizer, counters, reference); `buffer` (dynamic sampling, when there
is one); `meta` (JSON: config, data position, counters, versions). Tensors are stored under dotted names (`blocks.wq`), so that another
mesh, another number of devices or a reader of the parameters alone needs no knowledge of our classes. Orbax writes into a temporary folder
and renames it: what has the name of a step is whole; in a bucket, which has no rename, what holds commit_success.txt, written last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from lgrpo.config import CheckpointConfig, ExperimentConfig, ModelConfig
from lgrpo.config.overrides import from_json, to_json
from lgrpo.config.same import check_resume, check_same_model
from lgrpo.errors import UserError
from lgrpo.models.lora import merge
from lgrpo.runs import integrity, multihost, storage
from lgrpo.runs.retention import DAMAGE, NewestAndBest, best_step, open_manager
from lgrpo.runs.storage import PathLike, Place
from lgrpo.runs.stored import abstract, flatten, read_arrays, read_buffer, read_meta, require_same, split, stored_arrays, unflatten
from lgrpo.runs.versions import versions
from lgrpo.types import Params, TrainState

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Restored:
    """What Checkpoints.save was given, and the step."""

    step: int
    state: TrainState
    data: dict[str, Any]
    buffer: Any
    extra: dict[str, Any]


def write_config(workdir: PathLike, cfg: ExperimentConfig) -> None:
    """Write the resolved config (and versions) to <workdir>/config.json, for people and for plots. Main process only."""
    if not multihost.is_main():
        return
    storage.write_text(
        storage.place(workdir) / "config.json", json.dumps({"config": to_json(cfg), "versions": versions()}, indent=2) + "\n"
    )


# -- the public interface -----------------------------------------------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous: arrays are copied before save() returns, files are written behind it.

    On CPU the copy is made by the next update: it may not overwrite what is being read, and takes new memory. `wait` before it spares that.
    """

    def __init__(self, workdir: PathLike, cfg: CheckpointConfig, largest: int = 0) -> None:
        """largest: bytes of the largest array that is saved or restored here.

        Errors: UserError when cfg.resume is False but the workdir holds checkpoints, which a new run would mix with its own."""
        self._workdir = storage.absolute(workdir)
        self._folder = self._workdir / "checkpoints"
        self._saving, self._failed = -1, False
        self._policy = NewestAndBest(cfg.keep, cfg.keep_best)
        with storage.explained(self._folder):
            self._manager = open_manager(self._folder, create=True, policy=self._policy, finishing=self._sign, largest=largest)
        self._known = set(self._manager.all_steps())
        if not cfg.resume and self.latest() is not None:
            step = self.latest()
            self.close()
            raise UserError(f"checkpoint.resume=False: {self._folder} holds checkpoints up to step {step}; resume, or use a new --workdir")

    def save(
        self,
        step: int,
        *,
        state: TrainState,
        data: dict[str, Any],
        buffer: Any,
        cfg: ExperimentConfig,
        extra: dict[str, Any],
        metric: float | None,
        prune: bool = True,
    ) -> None:
        """Save everything under `step` (finished steps). Does nothing when that step was saved here or was there at the start.

        data, extra: JSON-able. buffer: pytree of NumPy arrays, the same on every process, and of global arrays, or None. metric: higher is better; None or NaN:
        not evaluated. prune: whether older checkpoints may go.
        Errors: TypeError for what is not JSON-able; UserError for a step that another run wrote meanwhile; an error of the
        previous save's background write.
        """
        if step in self._known:
            return
        with storage.explained(self._folder):
            taken = integrity.is_whole(self._folder / str(step))
        if taken:
            raise UserError(f"{self._folder / str(step)}: another run wrote this step meanwhile; give each run a --workdir of its own")
        # copies: the caller may go on using its arrays
        flat = {n: x if isinstance(x, jax.Array) else np.array(x) for n, x in flatten(buffer).items()}
        full = {n: x for n, x in flat.items() if x.size}  # Orbax refuses arrays without elements
        kept = {"full": sorted(full), "empty": {n: [list(x.shape), str(x.dtype)] for n, x in flat.items() if not x.size}}
        meta = {"config": to_json(cfg), "data": data, "extra": extra, "versions": versions(), "buffer": None if buffer is None else kept}
        json.dumps(meta)  # raises here rather than in the background
        params, rest = split(state)
        items = {
            "params": ocp.args.StandardSave(flatten(params)),
            "rest": ocp.args.StandardSave(flatten(rest)),
            "meta": ocp.args.JsonSave(meta),
        }
        if full:
            items["buffer"] = ocp.args.StandardSave(full)
        measured = None if metric is None or math.isnan(metric) else float(metric)
        self.wait()  # the manager would wait itself, but _saving is read until then
        self._saving, self._policy.frozen = step, not prune
        self._known.add(step)
        with self._explained():
            self._manager.save(step, args=ocp.args.Composite(**items), metrics={"metric": measured}, force=True)

    def _sign(self) -> None:
        """In the background thread of a save, once its files are written."""
        if multihost.is_main():
            integrity.sign_unfinished(self._folder, self._saving)

    def amend(self, step: int, *, extra: dict[str, Any], metric: float | None) -> None:
        """Replace extra and metric of a saved step, once what was missing of it is known. Each file is replaced at once, extra last."""
        self.wait()
        if multihost.is_main():
            folder = self._folder / str(step)
            meta = json.loads((folder / "meta" / "metadata").read_text())
            (folder / integrity.FILE).unlink(missing_ok=True)  # of files that are about to change
            measured = None if metric is None or math.isnan(metric) else float(metric)
            for file, value in (
                (folder / "metrics" / "metrics", {"metric": measured}),
                (folder / "meta" / "metadata", meta | {"extra": extra}),
            ):
                storage.write_text(file, json.dumps(value))
            integrity.write_checksums(folder)
        multihost.barrier("lgrpo_amend")
        self._manager.reload()

    def wait(self) -> None:
        """Until the last save is on disk. Errors: what went wrong while writing it; UserError where it was the disk."""
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and let go of the folder. Errors: as wait, unless save or wait have raised already."""
        with self._explained() if not self._failed else contextlib.suppress(*DAMAGE, *storage.errors()):
            self._manager.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors: UserError in place of one of the file system."""
        try:
            yield
        except (*storage.errors(), ValueError) as error:
            self._failed = True
            if integrity.of_the_disk(error):
                raise integrity.disk_error(self._folder, self._saving, error) from error
            raise

    def latest(self) -> int | None:
        """Newest saved step."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step with the highest metric among those kept."""
        return best_step(list(self._manager._checkpoints))

    def restore(
        self,
        target_state: TrainState,
        buffer_target: Any,
        cfg: ExperimentConfig,
        step: int | None = None,
        vocabulary: str = "",
        may_change: Sequence[str] = (),
    ) -> Restored:
        """The newest readable checkpoint (or that of `step`), placed as target_state says, whatever mesh wrote it.

        target_state: ShapeDtypeStructs with shardings, or arrays. buffer_target: structure of the buffer, its shapes do not matter; None:
        dict by dotted name. vocabulary: TextTokenizer.vocabulary; empty: not compared. may_change: further settings that may differ.
        A newer checkpoint that cannot be read is reported on
        stderr and moved to <workdir>/unreadable, never deleted.
        Errors: UserError, before any array is read, when the config differs where it may not (check_resume) or the vocabulary; when a tensor
        differs; when nothing can be read.
        """
        self.wait()
        params, rest = jax.tree.map(abstract, split(target_state))

        def read(at: int) -> Restored:
            meta = read_meta(self._manager, at)
            check_resume(from_json(meta["config"]), cfg, may_change)
            if vocabulary:
                _check_vocabulary(meta["extra"], vocabulary, self._folder)
            where = f"{self._folder / str(at)}"
            integrity.verify(self._folder / str(at))
            weights = read_arrays(self._manager, at, "params", params, where)
            integrity.require_finite(flatten(weights), where)
            state = read_arrays(self._manager, at, "rest", rest, where).replace(params=weights)
            return Restored(at, state, meta["data"], read_buffer(self._manager, at, buffer_target, meta), meta["extra"])

        restored, broken = _newest_readable(self._manager, self._folder, read, [step] if step is not None else None)
        if broken:
            self._set_aside(broken)
        return restored

    def roll_back(self, step: int, lr: float) -> bool:
        """Make `step` the newest: later checkpoints are moved to <workdir>/rolled_back. Nothing to do where the newest one says that it follows from
        such a step back, to this step and with this learning rate. Returns whether the run goes on from `step` now.

        Errors: UserError when it was not saved.
        """
        steps = sorted(self._manager.all_steps())
        with contextlib.suppress(*DAMAGE):
            if steps and steps[-1] > step and read_meta(self._manager, steps[-1])["extra"].get("rollback") == {"step": step, "lr": lr}:
                return False
        if step not in steps:
            raise UserError(f"checkpoint.rollback={step}: {self._folder} holds the steps {steps}; choose one of them")
        if later := [s for s in steps if s > step]:
            multihost.say(f"{self._folder}: back to step {step}; the checkpoints {later} are moved to {self._workdir / 'rolled_back'}")
            self._set_aside(later, "rolled_back")
        return True

    def _set_aside(self, steps: list[int], name: str = "unreadable") -> None:
        """Move checkpoints away, so that they are neither counted as newest nor in the way when their step comes again."""
        if multihost.is_main():
            aside = self._workdir / name
            aside.mkdir(exist_ok=True)
            for step in steps:
                free = next(p for i in range(1000) if not (p := aside / f"{step}{f'.{i}' if i else ''}").exists())
                storage.move_folder(self._folder / str(step), free, integrity.COMMIT)
        multihost.barrier("lgrpo_set_aside")
        self._manager.reload()
        self._known = set(self._manager.all_steps())


def _newest_readable(
    manager: ocp.CheckpointManager, folder: Place, read: Callable[[int], T], steps: Sequence[int] | None = None
) -> tuple[T, list[int]]:
    """read(step) of the first undamaged step, newest first, and the damaged ones before it. Errors: UserError when none is left."""
    broken: list[int] = []
    steps = sorted(manager.all_steps(), reverse=True) if steps is None else steps
    for step in steps:
        try:
            return read(step), broken
        except (*DAMAGE, *storage.errors()) as error:
            if said := storage.reason(error):  # says nothing about the checkpoint
                raise UserError(f"{folder / str(step)}: {said}") from error
            broken.append(step)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            if multihost.is_main():
                print(f"warning: {folder / str(step)}: cannot be read ({reason}); trying the one before it", file=sys.stderr)
    if not broken:
        raise UserError(f"{folder}: no checkpoint there; give the --workdir of a run that saved one")
    raise UserError(f"{folder}: none of the checkpoints {broken} can be read; restore one from a backup or use a new --workdir")


def _open(path: PathLike) -> tuple[ocp.CheckpointManager, Place]:
    """Manager, for reading, of a workdir or of its checkpoints folder. Errors: UserError when there are no checkpoints."""
    with storage.explained(path):
        return _open_place(path, storage.absolute(path))


def _open_place(path: PathLike, root: Place) -> tuple[ocp.CheckpointManager, Place]:
    folder = root / "checkpoints" if (root / "checkpoints").is_dir() else root
    if not folder.is_dir() or not any(child.name.isdecimal() for child in folder.iterdir()):
        if (root / "config.json").is_file() and any(root.glob("*.safetensors")):
            raise UserError(
                f"{path}: no checkpoints there, but a Hugging Face model; import it: python -m lgrpo import-hf {path} --workdir DIR"
            )
        raise UserError(f"{path}: no checkpoints there; give the workdir of a run that saved one, or its checkpoints folder")
    return open_manager(folder, create=False), folder


def _read_policy(manager: ocp.CheckpointManager, folder: Place, step: int, target: Params) -> Params:
    """The stored parameters as `target` wants them: adapters merged, and the decoder alone where the run trained an encoder too."""
    integrity.verify(folder / str(step), ["params"])
    stored = stored_arrays(manager, step, "params")
    adapted = any(name.startswith("adapters.") for name in stored)
    wanted = flatten(target)
    part = "decoder." if "decoder" not in target and any(name.endswith("decoder.embed") for name in stored) else ""
    root = ("base." if adapted else "") + part
    inside = {name.removeprefix(root): leaf for name, leaf in stored.items() if name.startswith(root)}
    require_same(inside, wanted, str(folder / str(step)), dtypes=False)
    asked = {root + name: leaf for name, leaf in wanted.items()}
    prefix = f"adapters.{part}"
    first = next(iter(wanted.values())).sharding
    everywhere = jax.NamedSharding(first.mesh, jax.P()) if isinstance(first, jax.NamedSharding) else first
    for name, leaf in stored.items():
        if adapted and name.startswith(prefix):
            asked[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
    # Through another handler, because the standard one cannot leave tensors out.
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    with reader:
        restore = ocp.args.PyTreeRestore(item=asked, restore_args=ocp.checkpoint_utils.construct_restore_args(asked), partial_restore=True)
        found = reader.restore(folder / str(step) / "params", args=restore)
    integrity.require_finite(found, str(folder / str(step)))
    params = unflatten(target, {name: found[root + name] for name in wanted})
    if not adapted:
        return params
    meta = read_meta(manager, step)
    lora = from_json(meta["config"]).sft.lora
    scale = meta["extra"].get("adapter_scale") or lora.alpha / lora.rank  # runs of before are of supervised training
    parts = {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}
    adapters = traverse_util.unflatten_dict(parts, sep=".")
    return jax.jit(merge, static_argnums=2, out_shardings=jax.tree.map(lambda x: x.sharding, target))(params, adapters, scale)


def load_params(path: PathLike, target_params: Params, *, best: bool = False) -> Params:
    """As load_weights, without the step."""
    return load_weights(path, target_params, best=best)[0]


def load_weights(path: PathLike, target_params: Params, *, best: bool = False) -> tuple[Params, int]:
    """Parameters only, and their step, of the newest (or best evaluated) checkpoint, cast and placed as target_params says (see Checkpoints.restore).

    path: a workdir or its checkpoints folder. A policy is found in every kind of run: low-rank adapters come merged, and of an encoder and
    decoder (Latent-SFT stage 1) the decoder is taken unless the target has both.
    Errors: UserError when there is none, or for the first tensor that differs, with both shapes.
    """
    target = jax.tree.map(abstract, target_params)
    manager, folder = _open(path)
    with manager:
        steps = None
        if best and (steps := [best_step(list(manager._checkpoints))]) == [None]:
            raise UserError(f"{folder}: no checkpoint there was evaluated, so none is the best; take the newest")
        return _newest_readable(manager, folder, lambda step: (_read_policy(manager, folder, step, target), step), steps)[0]


def has_encoder(path: PathLike) -> bool:
    """Whether the newest checkpoint is one of Latent-SFT stage 1, read from its tensors' names. Path and errors as load_params."""
    manager, folder = _open(path)
    with manager:
        names = _newest_readable(manager, folder, lambda step: set(stored_arrays(manager, step, "params")))[0]
    return any(name.endswith("encoder.compress") for name in names)


def saved_step(path: PathLike, *, best: bool = False) -> int:
    """Step whose parameters load_params would take, were it undamaged. Path and errors as there."""
    manager, folder = _open(path)
    with manager:
        step = best_step(list(manager._checkpoints)) if best else manager.latest_step()
    if step is None:
        raise UserError(f"{folder}: no checkpoint there was evaluated, so none is the best; take the newest")
    return step


def _of_meta(path: PathLike, pick: Callable[[dict[str, Any]], T]) -> T:
    """pick(meta) of the newest checkpoint of which it can be had. Path and errors as load_params."""
    manager, folder = _open(path)
    with manager:
        return _newest_readable(manager, folder, lambda step: pick(read_meta(manager, step)))[0]


def saved_extra(path: PathLike) -> dict[str, Any]:
    """What the newest readable checkpoint keeps besides arrays: counters and seconds spent. Path and errors as load_params."""
    return _of_meta(path, lambda meta: meta["extra"])


def _check_vocabulary(extra: Mapping[str, Any], vocabulary: str, where: PathLike) -> None:
    """That weights were trained on the ids of `vocabulary` (TextTokenizer.vocabulary). Imports and runs of earlier versions do not say. Errors: UserError."""
    saved = extra.get("vocabulary", vocabulary)
    if saved != vocabulary:
        raise UserError(
            f"{where}: its weights were trained on another vocabulary ({saved}) than that of the tokenizer ({vocabulary}); "
            "set data.tokenizer to the one they were trained with"
        )


def check_source(path: PathLike, model: ModelConfig, vocabulary: str) -> None:
    """That the newest checkpoint of a workdir is one of this model and this vocabulary. Errors: UserError saying what differs."""
    cfg, extra = _of_meta(path, lambda meta: (from_json(meta["config"]), meta["extra"]))
    check_same_model(cfg.model, model, str(path))
    _check_vocabulary(extra, vocabulary, path)


def saved_config(path: PathLike) -> ExperimentConfig:
    """Config of the newest readable checkpoint in a workdir or its checkpoints folder. Errors: UserError."""
    return _of_meta(path, lambda meta: from_json(meta["config"]))
