"""What a loop watches after every step: skipped updates, whose batch is kept for a look, and signs that a run diverges."""

from __future__ import annotations

import io
import sys
from typing import Any

import jax
import numpy as np

from lgrpo.config import AlarmConfig
from lgrpo.runs import multihost, storage
from lgrpo.runs.storage import Place
from lgrpo.train.health import check_gradients
from lgrpo.train.setup import Session

DUMPS = 5
"""Batches kept in <workdir>/nonfinite at most. The first ones tell most: later ones may follow from them."""


def _local(leaf: Any) -> np.ndarray:
    """The rows that this process holds."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    own = {str(s.index): s for s in leaf.addressable_shards}  # replicas of a shard once
    return np.concatenate([np.asarray(s.data) for s in sorted(own.values(), key=lambda s: s.index[0].start or 0)])


def dump_batch(folder: Place, step: int, batch: Any) -> Place | None:
    """Write the arrays of `batch` by dotted name to <folder>/step<step>.npz (.p<n>.npz of several processes, each its own rows).

    Read it with numpy.load. None when DUMPS batches are there already, or when the disk or the bucket does not take it.
    """
    many = jax.process_count() > 1
    own = f".p{jax.process_index()}.npz" if many else ".npz"
    path = folder / f"step{step}{own}"
    try:
        if not storage.remote(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if sum(1 for name in storage.files_below(folder) if name.startswith("step") and name.endswith(own)) >= DUMPS:
            return None
        leaves = jax.tree_util.tree_leaves_with_path(batch)
        arrays = {jax.tree_util.keystr(name, simple=True, separator="."): _local(leaf) for name, leaf in leaves}
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        storage.write_bytes(path, packed.getvalue())
    except storage.errors() as error:
        print(f"warning: step {step}: the batch was not kept ({storage.clean(error)})", file=sys.stderr)
        return None
    return path


def readings(metrics: dict[str, float], alarms: AlarmConfig) -> dict[str, tuple[float, str, float]]:
    """What is watched: field -> (value, "above" or "below", limit). Leaves out limits that are None and metrics that are absent."""
    watched = {
        "latent_share_below": ("rollout/latent_share", 1.0, "below"),
        "invalid_above": ("rollout/invalid_frac", 1.0, "above"),
        "replay_gap_above": ("policy/replay_gap", 1.0, "above"),
        "entropy_below": ("policy/logp", -1.0, "below"),
        "nan_above": ("rollout/nan_frac", 1.0, "above"),
    }
    found = {}
    for field, (name, sign, side) in watched.items():
        limit = getattr(alarms, field)
        if limit is not None and name in metrics:
            found[field] = (sign * metrics[name], side, limit)
    return found


class Guards:
    """Call `after` once per step."""

    def __init__(self, session: Session) -> None:
        self._session, self._cfg, self._folder = session, session.cfg, session.workdir / "nonfinite"
        self._skipped = int(session.state.skipped)
        self._ringing: set[str] = set()
        self._barren = 0  # steps in a row without an informative group

    def after(self, done: int, metrics: dict[str, float], batch: Any) -> None:
        """batch: what the step trained on. Errors: UserError once optim.max_nonfinite updates in a row were skipped."""
        if metrics["grad/skipped"] > self._skipped:
            self._skipped = int(metrics["grad/skipped"])
            path = dump_batch(self._folder, done, batch)
            if multihost.is_main():
                kept = f"its batch is in {path}" if path else "its batch is not kept"
                print(f"warning: step {done}: non-finite gradient, update skipped ({self._skipped} in all); {kept}", file=sys.stderr)
        self._alarms(done, metrics)
        self._informative(done, metrics)
        check_gradients(metrics, self._session, done)

    def _informative(self, done: int, metrics: dict[str, float]) -> None:
        limit, share = self._cfg.logging.alarms.uninformative_steps, metrics.get("dynamic/informative_frac")
        if not limit or share is None:
            return
        self._barren = 0 if share > 0 else self._barren + 1
        if self._barren and self._barren % limit == 0:
            multihost.say(
                f"warning: step {done}: {self._barren} steps without a group whose valid rewards differ, reward/mean is "
                f"{metrics['reward/mean']:.4g}: nothing is learned (logging.alarms.uninformative_steps={limit})"
            )

    def _alarms(self, done: int, metrics: dict[str, float]) -> None:
        """One line when a value crosses its limit; another one only after it has been back."""
        for field, (value, side, limit) in readings(metrics, self._cfg.logging.alarms).items():
            inside = value >= limit if side == "below" else value <= limit  # NaN is on neither side: it rings
            if inside:
                self._ringing.discard(field)
            elif field not in self._ringing:
                self._ringing.add(field)
                if multihost.is_main():
                    what = field.rsplit("_", 1)[0].replace("_", " ")
                    print(f"warning: step {done}: {what} is {value:.4g}, {side} logging.alarms.{field}={limit:g}", file=sys.stderr)
