"""Latent-SFT from end to end: encoder -> decoder -> union -> labels -> latent, each stage in a folder of its own under one workdir.

Every stage resumes by itself and finished stages return at once, so running the chain again after a kill goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lgrpo.config import ExperimentConfig
from lgrpo.errors import UserError
from lgrpo.runs import multihost, storage
from lgrpo.runs.checkpoint import saved_config, saved_extra
from lgrpo.runs.storage import PathLike, Place
from lgrpo.train import labels, sft

STAGES = ("encoder", "decoder", "union", "labels", "latent")
# The stage whose parameters a stage starts from (or reads, for labels); the encoder starts from the experiment's train.init_from.
_BEFORE = {"decoder": "encoder", "union": "decoder", "labels": "union", "latent": "union"}
MakeConfig = Callable[[str], ExperimentConfig]


def stage_config(cfg: ExperimentConfig, stage: str, workdir: Place) -> ExperimentConfig:
    """`cfg`, the experiment's config for `stage`, wired into the chain at `workdir`.

    Errors: UserError when the stage before it has not finished.
    """
    phase = "union" if stage == "labels" else stage
    cfg = dataclasses.replace(cfg, sft=dataclasses.replace(cfg.sft, stage=phase))
    if stage in _BEFORE:
        before = workdir / _BEFORE[stage]
        if not (before / "checkpoints").is_dir() or not saved_extra(before).get("finished"):
            raise UserError(f"{before}: stage {_BEFORE[stage]} has not finished; run --stage {_BEFORE[stage]} first, or --stage all")
        # Where the stage before stopped early, its newest checkpoint is not its best.
        cfg = labels.with_source(cfg, str(before), best=saved_config(before).sft.patience > 0)
    if stage == "latent":
        folder = workdir / "labels"
        missing = [s for s in dict.fromkeys((cfg.data.train_split, cfg.data.eval_split)) if not (folder / s).is_dir()]
        if missing:
            raise UserError(f"{folder}: no labels of {', '.join(missing)} yet; run --stage labels first, or --stage all")
        cfg = dataclasses.replace(cfg, sft=dataclasses.replace(cfg.sft, labels="encoder", label_path=str(folder)))
    return cfg


def run(make_config: MakeConfig, workdir: PathLike, stage: str) -> int:
    """One stage, or all of them. make_config: stage -> the experiment's config for it (labels are made under that of union).

    Returns 0, or 75 when a signal stopped it after saving. Errors: UserError as the stages, or for an unknown stage.
    """
    workdir = storage.place(workdir)
    if stage not in (*STAGES, "all"):
        raise UserError(f"--stage {stage}: no such stage; use one of {', '.join(STAGES)} or all")
    for name in STAGES if stage == "all" else (stage,):
        multihost.say(f"\n== {name}")
        cfg = stage_config(make_config("union" if name == "labels" else name), name, workdir)
        code = (labels.run if name == "labels" else sft.run)(cfg, workdir / name)
        if code:
            return code
    return 0
