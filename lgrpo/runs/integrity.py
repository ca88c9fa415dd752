"""Checksums of a checkpoint's files. Orbax verifies none of its small files, so a flipped bit there can pass for another value.

They are written into the step's folder (`checksums.json`) just before Orbax gives that folder its name, in a bucket just before it writes the
object that says that the step is whole (COMMIT): no checkpoint that counts is without them, except those of older versions, which are taken as
they are. CRC-32 finds accidents, it is no protection against people.
Cost: every file is read once more in the background of a save and once more at a restore, by one process.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.storage import Place

FILE = "checksums.json"
COMMIT = "commit_success.txt"
_LATER = {"_CHECKPOINT_METADATA", COMMIT, FILE}  # Orbax writes these after us; they hold times, nothing that is restored
_CHUNK = 1 << 22
_THREADS = 4


class DamagedError(ValueError):
    """A file of a checkpoint is not what was written."""


def of_the_disk(error: BaseException) -> bool:
    """Whether a failed save is the storage's fault (full, over quota, read-only, gone, not to be reached) and not the program's."""
    signs = ("RESOURCE_EXHAUSTED", "Error writing", "Failed writing")
    return isinstance(error, storage.errors()) or bool(storage.reason(error)) or any(sign in str(error) for sign in signs)


def is_whole(folder: Place) -> bool:
    """Whether the folder of a step is there, with all its files."""
    return (folder / COMMIT if storage.remote(folder) else folder).exists()


def disk_error(folder: Place, step: int, error: BaseException) -> UserError:
    """What to tell the user when saving `step` failed."""
    if storage.remote(folder):
        said = storage.reason(error) or f"the bucket did not take it ({storage.clean(error)}); run the same command again"
        return UserError(f"{folder}: saving step {step} failed: {said}; the checkpoints before it are intact")
    if not folder.exists():
        return UserError(f"{folder}: saving step {step} failed: the folder is gone; put it back, or start again in another --workdir")
    whole = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()]  # Orbax counts the failed one among its own
    rest = f"checkpoint {max(whole)} is intact" if whole else "no checkpoint is there yet"
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{folder}: saving step {step} failed ({reason}); {rest}: make room and run the same command again")


OLDER = "take an older checkpoint: --checkpoint.rollback STEP, with a lower --optim.lr, or other weights to start from"


def require_finite(arrays: dict[str, Any], where: str, mend: str = OLDER) -> None:
    """Errors: UserError naming the first of these tensors that holds NaN or inf. mend: what to do about it."""
    floats = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    good = dict(zip(floats, jax.device_get(_finite(list(floats.values()))), strict=True))
    bad = sorted(name for name, fine in good.items() if not fine)
    if bad:
        raise UserError(f"{where}: {len(bad)} of its {len(arrays)} tensors are not finite (the first: {bad[0]}); {mend}")


@jax.jit
def _finite(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(x).all() for x in arrays]


def _files(folder: Place) -> list[str]:
    """Paths below `folder`, sorted, without those that change later."""
    return [name for name in storage.files_below(folder) if os.path.basename(name) not in _LATER]


def _checksum(path: Place) -> list[int]:
    """[bytes, CRC-32]."""
    size, value = 0, 0
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            size, value = size + len(part), zlib.crc32(part, value)
    return [size, value]


def _checksums(folder: Place, names: Sequence[str]) -> list[list[int]]:
    with ThreadPoolExecutor(_THREADS) as pool:  # zlib lets go of the GIL
        return list(pool.map(lambda name: _checksum(folder / name), names))


def write_checksums(folder: Place) -> None:
    """Write checksums.json for every file below `folder`. Main process only; errors as open() raises them."""
    names = _files(folder)
    text = json.dumps(dict(zip(names, _checksums(folder, names), strict=True)))
    # The list vouches for itself too: a flip inside it is as likely as anywhere else.
    (folder / FILE).write_text(f"{zlib.crc32(text.encode()):08x} {text}\n")


def sign_unfinished(folder: Place, step: int) -> None:
    """As write_checksums, for the step that Orbax is about to finish: its folder still has a temporary name, except in a bucket."""
    if storage.remote(folder):
        write_checksums(folder / str(step))
        return
    for path in folder.iterdir():
        if path.name.startswith(f"{step}.orbax-checkpoint-tmp"):
            write_checksums(path)


def _find_damage(folder: Place, items: Sequence[str] | None) -> str:
    """Description of the first damaged file, "" when there is none."""
    if not (folder / FILE).exists():
        return ""
    try:
        sign, _, text = (folder / FILE).read_text().rstrip("\n").partition(" ")
        if f"{zlib.crc32(text.encode()):08x}" != sign:
            return f"{FILE} does not match its own checksum"
        listed: dict[str, Any] = json.loads(text)
        wanted = {n: v for n, v in listed.items() if items is None or n.split(os.sep)[0] in items}
        gone = next((n for n in wanted if not (folder / n).exists()), None)
        if gone is not None:
            return f"{gone} is missing"
        for (name, was), now in zip(wanted.items(), _checksums(folder, list(wanted)), strict=True):
            if was != now:
                return (
                    f"{name} has {now[0]} bytes where {was[0]} were written" if was[0] != now[0] else f"{name} does not match its checksum"
                )
    except (OSError, ValueError) as error:
        if storage.reason(error):
            raise  # says nothing about the file
        return f"{type(error).__name__}: {error}"
    return ""


def verify_here(folder: Place, items: Sequence[str]) -> None:
    """As verify, but by this process alone: for small items, also where the other processes do not take part."""
    if found := _find_damage(folder, items):
        raise DamagedError(found)


def verify(folder: Place, items: Sequence[str] | None = None) -> None:
    """Compare the files of these items (None: all) with what was written. Several processes: one reads, all of them hear the result.

    Errors: DamagedError, on every process, naming the first file that differs.
    """
    found = _find_damage(folder, items) if jax.process_index() == 0 else ""
    if jax.process_count() > 1:
        damaged = multihost_utils.broadcast_one_to_all(np.int32(bool(found)))
        found = found or ("the main process found a damaged file" if int(damaged) else "")
    if found:
        raise DamagedError(found)
