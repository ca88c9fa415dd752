"""Safetensors folders as Hugging Face writes them: one file, or several with an index. Reads slices, never whole models."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lgrpo.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Names in file headers and the types that lgrpo computes in; anything else (quantised weights) is refused.
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file. Errors: UserError when it is missing, broken or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; give a folder as `save_pretrained` writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download or save it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON {type(value).__name__}, not an object; download or save it again")
    return value


class TensorFiles:
    """The tensors of a folder, by name. Files are memory-mapped by the library; a read touches only the pages of its slice."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Errors: UserError when there are no safetensors, a file is missing or broken, or the index and the files disagree."""
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        for file in self._files():
            for name in self._handle(file).keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                if name in self._file_of:
                    raise UserError(f"{folder}: tensor {name} is in {self._file_of[name]} and in {file}; download or save it again")
                self._file_of[name] = file
        self._check_index()

    def _files(self) -> list[str]:
        if (self.folder / INDEX).is_file():
            mapped = read_json(self.folder / INDEX).get("weight_map")
            if not isinstance(mapped, dict) or not all(isinstance(file, str) for file in mapped.values()):
                raise UserError(f"{self.folder / INDEX}: has no `weight_map` of file names; download it again")
            files = sorted(set(mapped.values()))
            if odd := [file for file in files if pathlib.PurePath(file).name != file]:
                raise UserError(f"{self.folder / INDEX}: {odd[0]!r} is no plain file name; download it again")
            return files
        if (self.folder / SINGLE).is_file():
            return [SINGLE]
        other = sorted(p.name for p in self.folder.glob("*.bin")) if self.folder.is_dir() else []
        hint = f"only {other[0]}; save the model with safe_serialization=True" if other else "give a folder or a repo id of a model"
        raise UserError(f"{self.folder}: holds neither {SINGLE} nor {INDEX} ({hint})")

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            path = self.folder / file
            if not path.is_file():
                raise UserError(f"{path}: named in {INDEX}, but does not exist; download it again")
            try:
                self._open[file] = safe_open(str(path), framework="numpy")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: not a readable safetensors file ({error}); download it again") from error
        return self._open[file]

    def _check_index(self) -> None:
        if (self.folder / INDEX).is_file():
            mapped = read_json(self.folder / INDEX)["weight_map"]
            for name in sorted(mapped.keys() ^ self._file_of.keys()):
                where = "the files but not in" if name in self._file_of else "no file but in"
                raise UserError(f"{self.folder}: tensor {name} is in {where} {INDEX}; download it again")

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape as stored."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """`float32`, `bfloat16` or `float16`. Errors: UserError for any other."""
        found = self._slice(name).get_dtype()
        if found not in DTYPES:
            raise UserError(f"{self.folder}: tensor {name} is {found}; only {', '.join(DTYPES)} can be read, so give an unquantised model")
        return DTYPES[found]

    def _slice(self, name: str) -> Any:
        return self._handle(self._file_of[name]).get_slice(name)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """tensor[index] as stored, a copy; bfloat16 as ml_dtypes' type."""
        tensor, sizes = self._slice(name), self.shape(name)
        bounds = [s.indices(n) for s, n in zip(index or (slice(None),) * len(sizes), sizes, strict=True)]
        return tensor[tuple(slice(start, stop) for start, stop, _ in bounds)]


def pack(sizes: Sequence[tuple[str, int]], limit: int) -> list[list[str]]:
    """Names in order, cut into runs of at most `limit` bytes (a larger tensor has a file of its own). sizes: (name, bytes)."""
    runs: list[list[str]] = [[]]
    room = limit
    for name, size in sizes:
        if runs[-1] and size > room:
            runs.append([])
            room = limit
        runs[-1].append(name)
        room -= size
    return runs


def write_tensors(folder: pathlib.Path, sizes: Sequence[tuple[str, int]], tensors: Iterable[np.ndarray], limit: int) -> list[str]:
    """Writes tensors, given in the order of `sizes`, as one file or as numbered files with an index. Returns the file names.

    limit: bytes per file; that much of the model is in host memory at once.
    """
    runs, source, total = pack(sizes, limit), iter(tensors), sum(size for _, size in sizes)
    names = [SINGLE] if len(runs) == 1 else [f"model-{i:05d}-of-{len(runs):05d}.safetensors" for i in range(1, len(runs) + 1)]
    for file, run in zip(names, runs, strict=True):
        save_file({name: np.ascontiguousarray(next(source)) for name in run}, folder / file, metadata={"format": "pt"})
    if len(runs) > 1:
        weight_map = {name: file for file, run in zip(names, runs, strict=True) for name in run}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (folder / INDEX).write_text(text + "\n", encoding="utf-8")
    return names
