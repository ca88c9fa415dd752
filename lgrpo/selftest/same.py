"""What two runs must have in common, and what a kill may not do to the files of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lgrpo.runs import integrity, storage
from lgrpo.runs.metrics import FILE, read_metrics
from lgrpo.runs.storage import Place

FINAL = "final.json"
"""A hash of every array of the final state, beside the metrics of a run that is done."""


def lines(workdir: Place) -> list[dict[str, Any]]:
    """Metrics without what a clock measured."""
    if not (workdir / FILE).exists():
        return []
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in read_metrics(workdir)]


def compare_lines(whole: Sequence[dict[str, Any]], parts: Sequence[dict[str, Any]], *, finished: bool) -> str:
    """The first difference of metrics, "" for none. An unfinished run is compared as far as it got."""
    for ours, theirs in zip(whole, parts, strict=False):
        if ours != theirs:
            names = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
            shown = ", ".join(f"{n} is {theirs.get(n)} instead of {ours.get(n)}" for n in names[:3])
            return f"step {ours['step']}: {shown}"
    if len(parts) > len(whole) or (finished and len(parts) != len(whole)):
        return f"{len(parts)} lines of metrics instead of {len(whole)}"
    return ""


def compare_final(whole: Place, parts: Place) -> str:
    """The first difference of the final states, "" for none."""
    ours, theirs = (json.loads((folder / FINAL).read_text()) for folder in (whole, parts))
    for part, values in ours.items():
        if theirs[part] != values:
            differing = [n for n in values if theirs[part].get(n) != values[n]] if part != "data" else []
            return f"{part} differs" + (f" in {', '.join(differing[:3])}" if differing else "")
    return ""


def saved(workdir: Place) -> list[int]:
    """Steps of the checkpoints that count, oldest first."""
    folder = workdir / "checkpoints"
    found = [child for child in folder.iterdir() if child.name.isdecimal()] if folder.is_dir() else []
    return sorted(int(child.name) for child in found if integrity.is_whole(child))


def lost(workdir: Place, least: int) -> str:
    """What a kill lost that was there before, "" for nothing. least: the newest checkpoint at the kill before."""
    newest = max(saved(workdir), default=0)
    if newest < least:
        return f"the newest checkpoint is that of step {newest}, and that of step {least} was there before"
    if aside := storage.files_below(workdir / "unreadable"):
        return f"unreadable/{aside[0]}: a checkpoint counted as whole, and was not"
    text = (workdir / FILE).read_bytes() if (workdir / FILE).exists() else b""
    whole, _, half = text.rpartition(b"\n")
    if half and storage.remote(workdir):  # on a disk a resume drops it
        return f"half a line in {FILE}: {half[:80]!r}"
    if (count := len(whole.splitlines())) < newest:
        return f"a checkpoint of step {newest} with {count} lines of metrics"
    return ""


def leftovers(workdir: Place) -> str:
    """What a finished run in a bucket should have tidied up, "" for nothing."""
    if not storage.remote(workdir):
        return ""  # a file that was to take another's name, and nobody reads
    left = [name for name in storage.files_below(workdir) if name.endswith(storage.PART) or name == "lock.json"]
    return f"left over: {', '.join(left[:3])}" if left else ""
