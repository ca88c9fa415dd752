"""A trace of a few steps, for xprof or TensorBoard: train.profile_steps."""

from __future__ import annotations

import pathlib
import shutil
import sys
import tempfile
from typing import Any, Self

import jax

from lgrpo.config import ExperimentConfig
from lgrpo.runs import storage
from lgrpo.runs.storage import Place


class Profile:
    """Traces the steps that the config names. A context, so that a run that ends or fails inside them leaves a whole trace."""

    def __init__(self, cfg: ExperimentConfig, workdir: Place) -> None:
        self._steps, self._target = cfg.train.profile_steps, workdir / "profile"
        self._folder: pathlib.Path | None = None  # where a trace is being written
        self._mark: Any = None

    def before(self, step: int) -> None:
        """Called at the start of each step, which counts from 1. Compilation of a program is in the trace where its first call is."""
        if self._steps is None:
            return
        self._unmark()
        first, end = self._steps
        inside = first <= step < end
        if inside and self._folder is None:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would hide the device work
            # The profiler writes to this machine only; a bucket gets a copy.
            self._folder = pathlib.Path(tempfile.mkdtemp()) if storage.remote(self._target) else self._target
            jax.profiler.start_trace(self._folder, profiler_options=options)
        if not inside:
            self._stop()
        if self._folder is not None:
            self._mark = jax.profiler.StepTraceAnnotation("step", step_num=step)
            self._mark.__enter__()

    def _unmark(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None

    def _stop(self) -> None:
        if self._folder is None:
            return
        jax.profiler.stop_trace()
        if storage.remote(self._target):
            try:
                storage.upload(self._folder, self._target)
                shutil.rmtree(self._folder)
            except storage.errors() as error:  # no reason to end a run
                print(f"warning: {self._target}: not written ({storage.clean(error)}); the trace lies in {self._folder}", file=sys.stderr)
        self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._unmark()
        self._stop()
