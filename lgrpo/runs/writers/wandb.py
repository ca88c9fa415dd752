"""Weights & Biases. Where it writes, and whether it sends (WANDB_MODE=offline keeps all here, WANDB_API_KEY names the user), is its own affair."""

from __future__ import annotations

from typing import Any

from lgrpo.runs.writers.writer import Entry, Run


class Wandb:
    def open(self, run: Run) -> None:
        import wandb  # an extra

        self._table: Any = wandb.Table
        self._run = wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            dir=str(run.folder),
            config=dict(run.config),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off"),
        )

    def write(self, entry: Entry) -> None:
        self._run.log(entry.logged(self._table), step=entry.step)

    def close(self) -> None:
        self._run.finish()
