"""TensorBoard event files in <workdir>/tensorboard."""

from __future__ import annotations

from typing import Any

from lgrpo.runs import markdown
from lgrpo.runs.writers.writer import Entry, Run


def _plain(value: Any) -> str:
    """A value as code, in which nothing of it is markup."""
    text = str(value).replace("`", "'")
    return f"`{text}`" if text else ""


def shown(columns: list[Any], data: list[Any]) -> str:
    """A table of values as they are."""
    return markdown.table(columns, [[_plain(value) for value in row] for row in data])


class TensorBoard:
    def open(self, run: Run) -> None:
        from tensorboardX import SummaryWriter  # here, because it takes a second to import

        # purge_step makes TensorBoard forget what a killed run wrote after the checkpoint.
        self._board = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)

    def write(self, entry: Entry) -> None:
        for name, x in entry.finite.items():
            self._board.add_scalar(name, x, entry.step)
        if entry.samples:
            self._board.add_text("samples", shown(**entry.table), entry.step)
        self._board.flush()

    def close(self) -> None:
        self._board.close()
