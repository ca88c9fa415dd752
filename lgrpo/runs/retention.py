"""Which checkpoints a run keeps, which of them is the best, and the Orbax manager that both readers and writers open."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint._src.serialization import tensorstore_utils

from lgrpo.runs import storage

# What damaged files raise. Anything else, such as running out of memory, says nothing about the checkpoint.
DAMAGE = (ValueError, OSError, KeyError, EOFError)


IN_FLIGHT = 250_000_000
"""Bytes of one item on their way between memory and files at once. Orbax's own limit of 96 GB is none: a save would hold the state twice more."""


def in_flight(largest: int) -> int:
    """The limit for an item whose largest array has so many bytes: Orbax refuses an array that does not fit below the limit."""
    return max(IN_FLIGHT, largest + largest // 100)


class NewestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest n and, when asked, the one with the highest metric (the first of equals)."""

    def __init__(self, newest: int, best: bool) -> None:
        self.newest, self.best = newest, best
        self.frozen = False
        """Nothing goes: set while a run may turn out to have gone wrong."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of the checkpoints, oldest first, stay."""
        if self.frozen:
            return [True] * len(checkpoints)
        keep = {c.step for c in checkpoints[-self.newest :]}
        best = best_step(checkpoints)
        return [c.step in keep or (self.best and c.step == best) for c in checkpoints]


def _metric(info: Any) -> float:
    value = (info.metrics or {}).get("metric")
    return -math.inf if value is None else value


def best_step(infos: Sequence[Any]) -> int | None:
    """Step with the highest metric; None when none was evaluated."""
    best = max(infos, key=_metric, default=None)
    return None if best is None or _metric(best) == -math.inf else best.step


class _Manager(ocp.CheckpointManager):
    """Opens also where the metric of a checkpoint is damaged: that one is then no candidate for the best."""

    def _get_metrics(self, step: int) -> Any:
        try:
            found = super()._get_metrics(step)
        except DAMAGE:
            found = None
        return found if isinstance(found, dict) and isinstance(found.get("metric"), float) else {"metric": None}


def _bound_retries() -> None:
    """Arrays go to a bucket through TensorStore, which would try for a quarter of an hour; Orbax has no setting for it."""
    longest = 8.0
    times = {"max_retries": max(2, round(storage.PATIENCE / longest) + 4), "initial_delay": "0.5s", "max_delay": f"{longest:g}s"}
    for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
        context["gcs_request_retries"] = times


def open_manager(
    folder: storage.Place,
    *,
    create: bool,
    policy: NewestAndBest | None = None,
    finishing: Callable[[], None] | None = None,
    largest: int = 0,
) -> ocp.CheckpointManager:
    """Orbax manager of a folder of checkpoints, for writing (policy, finishing, largest) or reading. finishing: called when the files of a step are there.

    largest: bytes of the largest array.
    """
    options = ocp.CheckpointManagerOptions(
        create=create,
        preservation_policy=policy,
        async_options=ocp.AsyncOptions(post_finalization_callback=finishing),  # runs before the folder gets its name
        best_fn=lambda m: m["metric"] if m["metric"] is not None else -math.inf,
    )
    if storage.remote(folder):
        _bound_retries()
    text = ocp.JsonCheckpointHandler

    def arrays() -> ocp.StandardCheckpointHandler:
        limit = in_flight(largest) / 10**9
        return ocp.StandardCheckpointHandler(save_concurrent_gb=limit, restore_concurrent_gb=limit)

    return _Manager(folder, options=options, item_handlers={"params": arrays(), "rest": arrays(), "buffer": arrays(), "meta": text()})
