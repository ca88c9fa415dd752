"""trackio, a local tracker. TRACKIO_DIR says where its data base lies."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from lgrpo.runs.writers.writer import Entry, Run


class Trackio:
    def open(self, run: Run) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            import trackio  # an extra

            self._table: Any = trackio.Table
            # A run is found again by its name.
            self._run = trackio.init(
                run.project, name=f"{run.name}-{run.id}", config=dict(run.config), resume="allow", embed=False, auto_log_cpu=False
            )
            # Else it is finished once more when the process ends, with a line on stdout.
            trackio.context_vars.current_run.set(None)

    def write(self, entry: Entry) -> None:
        self._run.log(entry.logged(self._table), step=entry.step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()
