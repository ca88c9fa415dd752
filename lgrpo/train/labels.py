"""The label pass of Latent-SFT: one jitted encoder pass over the training and the evaluation split, written as label sets."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from lgrpo.algos.stage1 import compressed, encode, stage1_specs
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import to_json
from lgrpo.data import labels
from lgrpo.data.pipeline import SftStream, sft_stream
from lgrpo.data.prompts import TextTokenizer
from lgrpo.errors import UserError
from lgrpo.models.decoder import compute_params
from lgrpo.models.spec import spec_abstract, spec_shardings
from lgrpo.runs import multihost, storage
from lgrpo.runs.checkpoint import check_source, has_encoder, load_params, saved_step
from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag
from lgrpo.runs.metrics import progress
from lgrpo.runs.storage import PathLike
from lgrpo.runs.versions import versions
from lgrpo.sharding import make_mesh, put_batch
from lgrpo.train.setup import prepare
from lgrpo.types import Array, Params


@partial(jax.jit, static_argnames=("cfg",))
def label_batch(params: Params, batch: dict[str, Array], *, cfg: ExperimentConfig) -> tuple[jax.Array, jax.Array]:
    """Labels of a supervised batch: ids int32 [N,M,K], probs float32 [N,M,K]; what is no latent has id 0 and weight 0. params: stage 1."""
    sequence = compressed(batch, cfg)
    ids, probs = encode(compute_params(params, cfg.model), sequence, cfg)
    real = sequence.latents[..., None]
    return jax.numpy.where(real, ids, 0), jax.numpy.where(real, probs, 0.0)


def _manifest(cfg: ExperimentConfig, tokenizer: TextTokenizer, split: str, stream: SftStream) -> dict[str, Any]:
    """What made the labels of a split: requirements of the reader, config, and the checkpoint they come from."""
    source = {"path": cfg.train.init_from, "step": saved_step(cfg.train.init_from, best=cfg.train.init_best)}
    identity = {"config_hash": labels.config_digest(cfg), "source": source}
    return labels.requirements(cfg, tokenizer, split, stream.fingerprint, stream.records) | identity | {"config": to_json(cfg)}


def _label_split(
    params: Params, cfg: ExperimentConfig, stream: SftStream, mesh: jax.sharding.Mesh, stop: StopFlag
) -> dict[str, np.ndarray] | None:
    """uid, ids and probs of all records, in file order; None when a signal came."""
    size, parts = cfg.sft.batch_size, []
    for batch in progress(stream, "labels", cfg.logging.progress):
        if stop.agreed():
            return None
        # The last batch may be short: filled up with its own rows, so that one compilation serves all.
        count = len(batch["uid"])
        filled = jax.tree.map(lambda x, count=count: x[np.arange(size) % count], batch)
        ids, probs = label_batch(params, put_batch(filled, mesh), cfg=cfg)
        ids, probs = multihost.host((ids, probs))
        parts.append({"uid": batch["uid"], "ids": ids[:count], "probs": probs[:count]})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run(cfg: ExperimentConfig, folder: PathLike) -> int:
    """Writes the labels of data.train_split and data.eval_split into `folder`, from the stage 1 run at train.init_from.

    cfg.sft.stage is one of stage 1. A split whose labels are already there, made by the same config from the same checkpoint, is left alone.
    Returns 0, or 75 when a signal stopped it (finished splits stay). Errors: UserError for an invalid config or a source without an encoder.
    """
    folder = storage.place(folder)
    cfg, tokenizer = prepare(cfg, kind="sft")
    source = cfg.train.init_from
    if not source or not has_encoder(source):
        raise UserError(
            f"train.init_from: {source or '(empty)'} has no encoder; give the workdir of a stage 1 run (encoder, decoder or union)"
        )
    check_source(source, cfg.model, tokenizer.vocabulary)
    mesh = make_mesh(cfg.mesh)
    specs = stage1_specs(cfg.model)
    params = load_params(source, spec_abstract(specs, cfg.model, spec_shardings(specs, mesh)), best=cfg.train.init_best)
    with StopFlag() as stop, jax.set_mesh(mesh):
        for split in dict.fromkeys((cfg.data.train_split, cfg.data.eval_split)):
            stream = sft_stream(cfg, tokenizer, split, batch=cfg.sft.batch_size, shuffle=False)
            manifest = _manifest(cfg, tokenizer, split, stream)
            there = labels.read_manifest(folder / split)
            if there is not None and all(there.get(name) == value for name, value in manifest.items()):
                multihost.say(f"{folder / split}: labels are there")
                continue
            found = _label_split(params, cfg, stream, mesh, stop)
            if found is None:
                multihost.say("stopped; splits that were done are kept; run the same command again")
                return EXIT_PREEMPTED
            labels.write_labels(folder / split, manifest | {"versions": versions()}, **found)
            multihost.barrier(f"lgrpo_labels_{split}")  # the next stage reads them on every process
            entropy = -np.sum(np.where(found["probs"] > 0, found["probs"] * np.log(np.maximum(found["probs"], 1e-12)), 0), -1)
            real = found["probs"].sum(-1) > 0
            multihost.say(f"{folder / split}: {len(found['uid'])} records, {real.sum()} latents, entropy {entropy[real].mean():.3f}")
    return 0


def with_source(cfg: ExperimentConfig, source: str, *, best: bool) -> ExperimentConfig:
    """`cfg` of a stage 1 phase, for making labels from the run at `source`."""
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, init_from=source, init_best=best))
