"""The copies of a run's record: which there are, which run of a tracker they go on with, and that none of them can stop the run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import queue
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lgrpo.config import LoggingConfig
from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.writers.tensorboard import TensorBoard
from lgrpo.runs.writers.trackio import Trackio
from lgrpo.runs.writers.wandb import Wandb
from lgrpo.runs.writers.writer import Entry, Run, Writer

IDS = "trackers.json"
"""In the workdir: name of a tracker -> id of the run in it."""
TRACKERS: dict[str, Callable[[], Writer]] = {"wandb": Wandb, "trackio": Trackio}
PATIENCE = 60.0
"""Seconds that the end of a run waits for each copy."""
_WAITING = 1000  # entries


class Copy:
    """A writer whose work is done beside the run, in a thread, and whose failure costs one line on stderr and the rest of the copy."""

    def __init__(self, name: str, writer: Writer, run: Run, after: int = 0) -> None:
        """after: the last step that an earlier process of the run has given it; those up to it are left out."""
        self._name, self._writer, self._after, self._failed = name, writer, after, False
        self._queue: queue.Queue[Entry | None] = queue.Queue(_WAITING)
        self._guarded(writer.open, run)
        self._thread = threading.Thread(target=self._work, name=f"lgrpo-{name}", daemon=True)
        self._thread.start()

    def _give_up(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            print(f"warning: {self._name} is left out from here on, metrics.jsonl goes on: {why}", file=sys.stderr)

    def _guarded(self, work: Callable[..., None], *args: Any) -> None:
        if self._failed:
            return
        try:
            work(*args)
        except Exception as error:  # whatever a tracker raises
            said = (str(error).strip().splitlines() or [""])[0]
            self._give_up(f"{type(error).__name__}: {said}")

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._guarded(self._writer.write, entry)
        self._guarded(self._writer.close)

    def write(self, entry: Entry) -> None:
        """Returns at once."""
        if self._failed or entry.step <= self._after:
            return
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._give_up(f"{_WAITING} steps behind")

    def close(self) -> None:
        """Waits for what is under way, PATIENCE seconds at most. May be called twice."""
        if not self._thread.is_alive():
            return
        if not (self._failed and self._queue.full()):
            self._queue.put(None)
            self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._give_up(f"not done {PATIENCE:g} s after the end of the run")


def open_copies(cfg: LoggingConfig, run: Run, sent: int, *, anew: bool) -> list[Copy]:
    """What cfg asks for beside the record. sent: the last step in the record before it was rewound, which the trackers have seen.
    anew: the run went back to change its course; a tracker cannot forget, so it gets a new run.

    Errors: UserError for a tracker that is not installed.
    """
    names = [name for name in TRACKERS if getattr(cfg, name)]
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"logging.{name}=True: the package {name} is not installed; pip install 'lgrpo[{name}]'")
    copies = [Copy("tensorboard", TensorBoard(), run)] if cfg.tensorboard else []
    known = _ids(run.folder)
    ids = ({} if anew else known) | {name: uuid.uuid4().hex[:8] for name in names if anew or name not in known}
    if names:
        storage.write_text(run.folder / IDS, json.dumps(ids, indent=2) + "\n")
    for name in names:
        after = run.step if anew or name not in known else sent
        copies.append(Copy(name, TRACKERS[name](), dataclasses.replace(run, id=ids[name]), after))
    return copies


def _ids(folder: Path) -> dict[str, str]:
    """Errors: UserError for a file that is no such table."""
    path = folder / IDS
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {str(name): str(id_) for name, id_ in found.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a table of tracker runs ({error}); remove it, and trackers begin new runs") from error
