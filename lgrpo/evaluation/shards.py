"""Results of an evaluation in pieces on disk, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgrpo.errors import UserError
from lgrpo.runs import multihost, storage
from lgrpo.runs.storage import Place, write_text
from lgrpo.types import Params

IDENTITY, SHARDS = "identity.json", "shards"
Row = dict[str, Any]
_PRIMES = (2654435761, 2246822519, 3266489917, 668265263, 374761393)


def to_lines(rows: Iterable[Row]) -> str:
    """Rows as JSON Lines. Text may hold lone surrogates, which only the escaped form survives."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Place) -> list[Row]:
    """Rows of a JSON Lines file. Errors: UserError for a file that is missing or damaged."""
    try:
        return [json.loads(line) for line in storage.text_of(path).split("\n") if line]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON Lines ({error}); remove it, and the evaluation makes it again") from error


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    """uint32 [] over bits and positions; the same on any mesh, since sums of integers do not depend on their order."""
    bits = jax.lax.bitcast_convert_type(leaf, jnp.uint16 if leaf.dtype.itemsize == 2 else jnp.uint32).astype(jnp.uint32)
    place = jnp.ones(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(_PRIMES[axis % len(_PRIMES)])
    mixed = (bits ^ (bits >> 15)) * place
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def params_digest(params: Params) -> str:
    """16 hex digits that tell two sets of weights apart. Reads every weight once, on the devices. Not a defence against forgery."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = jax.device_get([_checksum(leaf) for _, leaf in leaves])
    parts = [f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}{int(x)}" for (path, leaf), x in zip(leaves, sums, strict=True)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def text_digest(parts: Iterable[str | bytes]) -> str:
    """16 hex digits of a sequence of texts or bytes."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:16]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {path: leaf for name, part in value.items() for path, leaf in _flat(part, f"{prefix}.{name}" if prefix else name).items()}


class Shards:
    """Rows by key in <folder>/shards/<key>.jsonl, all of one evaluation: the same weights, problems and settings."""

    def __init__(self, folder: Place | None, identity: Mapping[str, Any]) -> None:
        """folder None: nothing is kept. Errors: UserError when the folder holds results of another evaluation."""
        self._folder = folder
        if folder is None:
            return
        if problem := multihost.share(lambda: self._claim(folder, identity)):
            raise UserError(problem)

    @staticmethod
    def _claim(folder: Place, identity: Mapping[str, Any]) -> str:
        """Marks the folder as that of `identity`; what is wrong when it is another's."""
        file = folder / IDENTITY
        mine = json.loads(json.dumps(identity))
        if file.is_file():
            theirs = _flat(json.loads(file.read_text()))
            differ = [f"{p}: {theirs.get(p)!r} there, {v!r} now" for p, v in _flat(mine).items() if theirs.get(p) != v]
            if differ:
                return f"{folder}: holds an evaluation of other weights or settings; remove it or choose another folder with --out:\n  " + (
                    "\n  ".join(differ)
                )
        else:
            write_text(file, json.dumps(mine, indent=1) + "\n")
        return ""

    def _path(self, key: str) -> Place:
        return self._folder / SHARDS / (re.sub(r"[^\w.=-]", "_", key) + ".jsonl")

    def get(self, key: str) -> list[Row] | None:
        """Rows of a finished shard, or None. The main process reads for all."""
        if self._folder is None:
            return None
        path = self._path(key)
        return multihost.share(lambda: read_rows(path) if path.is_file() else None)

    def put(self, key: str, rows: list[Row]) -> None:
        """Keeps a finished shard."""
        if self._folder is not None and multihost.is_main():
            write_text(self._path(key), to_lines(rows))


def problems_digest(batches: Iterable[tuple[Any, list[str], np.ndarray]]) -> str:
    """Digest of the problems as tokens and of their gold answers, in order."""

    def parts() -> Iterable[str | bytes]:
        for prompts, answers, real in batches:
            yield np.asarray(prompts.tokens)[real].tobytes()
            yield np.asarray(prompts.uid)[real].tobytes()
            yield from (answer for answer, keep in zip(answers, real, strict=True) if keep)

    return text_digest(parts())
