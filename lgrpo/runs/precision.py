"""model.dtype=auto of a run: chosen where it begins, and kept."""

from __future__ import annotations

from lgrpo.config import ExperimentConfig
from lgrpo.config.machine import settle_dtype
from lgrpo.runs import storage
from lgrpo.runs.checkpoint import saved_config
from lgrpo.runs.storage import PathLike


def settle_for_run(cfg: ExperimentConfig, workdir: PathLike | None) -> tuple[ExperimentConfig, str]:
    """settle_dtype for a run in workdir (None: nowhere). If it has a checkpoint, its type stays, on whatever machine it goes on. Errors: UserError."""
    if workdir is None or cfg.model.dtype != "auto":
        return settle_dtype(cfg)
    place = storage.place(workdir) / "checkpoints"
    if not (place.is_dir() and any(child.name.isdecimal() for child in place.iterdir())):
        return settle_dtype(cfg)
    return settle_dtype(cfg, (saved_config(workdir).model.dtype, f"with which {workdir} began"))
