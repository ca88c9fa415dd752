"""Sets of latent labels on disk: written once by `sft --stage labels`, read beside the data, refused where they do not belong to it.

`<folder>/<split>/` holds labels.npz (uid int32 [R], ids int32 [R,M,K], probs float32 [R,M,K]; R records, M latents, padded with weight 0) and
manifest.json: what made the labels, and everything that must agree before they are used. It is written last: without it there are none.
"""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np

from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import to_json
from lgrpo.data.files import digest, inside
from lgrpo.data.prompts import TextTokenizer
from lgrpo.errors import UserError
from lgrpo.runs import multihost, storage
from lgrpo.runs.storage import Place

ARRAYS, MANIFEST = "labels.npz", "manifest.json"


def tokenizer_digest(tokenizer: TextTokenizer) -> str:
    """Identity of a tokenizer: of its whole definition, so that a new word counts as another tokenizer."""
    return digest(tokenizer.inner.to_str().encode())


def config_digest(cfg: ExperimentConfig) -> str:
    """Identity of a config."""
    return digest(json.dumps(to_json(cfg), sort_keys=True).encode())


def requirements(cfg: ExperimentConfig, tokenizer: TextTokenizer, split: str, fingerprint: str, records: int) -> dict[str, Any]:
    """What a label set's manifest must say to belong to these data under this config."""
    return {
        "split": split,
        "records": records,
        "data": fingerprint,
        "tokenizer": tokenizer_digest(tokenizer),
        "k": cfg.rollout.latent.k,
        "compression": cfg.sft.compression,
    }


# How to mend each disagreement.
_MEND = {
    "split": "point sft.label_path to the folder that holds all splits",
    "records": "use the data settings and length limits that the labels were made with",
    "data": "use the data settings and length limits that the labels were made with",
    "tokenizer": "use the tokenizer that the labels were made with",
    "k": "set rollout.latent.k to that of the labels",
    "compression": "set sft.compression to that of the labels",
}


def read_manifest(folder: Place) -> dict[str, Any] | None:
    """The manifest of one split's folder; None when there is none. Errors: UserError when it is damaged."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(storage.text_of(file))
        return dict(manifest)
    except ValueError as error:
        raise UserError(f"{file}: not a manifest ({error}); make the labels again with --stage labels") from error


def write_labels(folder: Place, manifest: dict[str, Any], *, uid: np.ndarray, ids: np.ndarray, probs: np.ndarray) -> None:
    """Writes one split's labels, replacing earlier ones. Main process only; a crash leaves the old ones or none."""
    if not multihost.is_main():
        return
    arrays = io.BytesIO()
    np.savez(arrays, uid=uid.astype(np.int32), ids=ids.astype(np.int32), probs=probs.astype(np.float32))
    data = arrays.getvalue()
    storage.remove_folder(folder, MANIFEST)
    storage.write_bytes(folder / ARRAYS, data)
    storage.write_text(folder / MANIFEST, json.dumps(manifest | {"content": digest(data)}, indent=1) + "\n")


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """Labels in the order of the data's rows."""

    ids: np.ndarray  # int32 [R,M,K]
    probs: np.ndarray  # float32 [R,M,K]
    content: str
    """Identity of the arrays."""


def load_labels(
    cfg: ExperimentConfig, tokenizer: TextTokenizer, split: str, *, fingerprint: str, uid: np.ndarray, latents: int
) -> LabelSet:
    """The labels of a split for the records `uid` int32 [R], cut or padded to `latents` slots.

    Errors: UserError when there are none, when they are damaged, or naming everything in which they do not fit data, tokenizer, K or c.
    """
    folder = inside(storage.place(cfg.sft.label_path), split, "sft.label_path: the split's name")
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"sft.label_path: no labels of split {split!r} in {cfg.sft.label_path or '(empty)'}; make them with --stage labels")
    wanted = requirements(cfg, tokenizer, split, fingerprint, len(uid))
    differ = [
        f"{name} is {manifest.get(name)!r} in the labels and {value!r} here: {_MEND[name]}"
        for name, value in wanted.items()
        if manifest.get(name) != value
    ]
    if differ:
        raise UserError("\n  ".join([f"{folder}: these labels do not belong to this run:", *differ]))
    data = (folder / ARRAYS).read_bytes()
    if digest(data) != manifest["content"]:
        raise UserError(f"{folder / ARRAYS}: damaged; make the labels again with --stage labels")
    with np.load(io.BytesIO(data)) as arrays:
        theirs, ids, probs = arrays["uid"], arrays["ids"], arrays["probs"]
    order = np.argsort(theirs)
    rows = order[np.searchsorted(theirs, uid, sorter=order)]  # the fingerprint vouches that every uid is there
    return LabelSet(_fit(ids[rows], latents), _fit(probs[rows], latents), manifest["content"])


def _fit(x: np.ndarray, latents: int) -> np.ndarray:
    """[R,M,K] -> [R,latents,K]. The records fit in both, so only padding is cut."""
    x = x[:, :latents]
    return np.pad(x, ((0, 0), (0, latents - x.shape[1]), (0, 0)))
