"""Tensors between Hugging Face's layout and ours, driven by the parameter table.

Ours are stacked over layers and keep heads apart: wq is [L, D, H, Dh]. Theirs are one [outputs, inputs] matrix per layer: q_proj.weight is
[H*Dh, D]. A device asks for its shard of ours; only the matching rows and columns of theirs are read.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgrpo.config import ModelConfig
from lgrpo.errors import UserError
from lgrpo.models.gguf_io import GgufFile
from lgrpo.models.hf_io import TensorFiles
from lgrpo.models.spec import ParamSpec, param_specs
from lgrpo.types import Params

Index = tuple[slice, ...]
Files = TensorFiles | GgufFile
_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.", re.ASCII)
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _specs(cfg: ModelConfig) -> list[ParamSpec]:
    return jax.tree.leaves(param_specs(cfg), is_leaf=lambda x: isinstance(x, ParamSpec))


def _stacked(spec: ParamSpec) -> bool:
    return "{layer}" in spec.hf


def _body(spec: ParamSpec) -> tuple[int, ...]:
    """Shape of one layer of ours."""
    return spec.shape[1:] if _stacked(spec) else spec.shape


def hf_shape(spec: ParamSpec) -> tuple[int, ...]:
    """Shape of one tensor as Hugging Face stores it."""
    body, inputs = _body(spec), spec.hf_inputs
    if inputs:
        return (math.prod(body[inputs:]), math.prod(body[:inputs]))
    return (math.prod(body),) if spec.hf.endswith(".bias") else body


def hf_tensors(cfg: ModelConfig) -> list[tuple[str, ParamSpec, int | None]]:
    """(Hugging Face name, spec, layer or None) of every tensor, in the order of the network."""
    top = {spec.hf: spec for spec in _specs(cfg) if not _stacked(spec)}
    blocks = [spec for spec in _specs(cfg) if _stacked(spec)]
    layers = [(spec.hf.format(layer=layer), spec, layer) for layer in range(cfg.n_layers) for spec in blocks]
    tail = [(name, spec, None) for name, spec in top.items() if name != EMBED]
    return [(EMBED, top[EMBED], None), *layers, *tail]


# -- reading ------------------------------------------------------------------------------------------------------------------------------


def check_names(files: Files, cfg: ModelConfig, *, rows: int) -> None:
    """Every tensor is there, no other is, and all have the right shape. rows: vocabulary rows in the files.

    A tied model may carry lm_head.weight, when it equals the embedding table. Errors: UserError naming the first tensor that does not fit.
    """
    _require_layers(files, cfg)
    expected = {name: spec for name, spec, _ in hf_tensors(cfg)}
    tied = cfg.tie_embeddings and HEAD in files
    missing = [name for name in expected if name not in files]
    unmapped = sorted(set(files) - expected.keys() - ({HEAD} if tied else set()))
    if missing:
        hint = "; config.json says tie_word_embeddings=false, and only a tied model has none" if missing[0] == HEAD else ""
        raise UserError(f"{files.folder}: tensor {missing[0]} is missing ({len(missing)} in all){hint}; download the model again")
    if unmapped:
        raise UserError(
            f"{files.folder}: tensor {unmapped[0]} has no place in a {cfg.family} model ({len(unmapped)} in all); merge adapters "
            "into the weights, or correct model_type in config.json"
        )
    for name, spec in expected.items():
        wanted, found = hf_shape(spec), files.shape(name)
        if "vocab" in spec.axes:
            wanted = (rows, cfg.d_model)
        if wanted != found:
            raise UserError(f"{files.folder}: tensor {name} has shape {found}, but config.json means {wanted}; they are of two models")
    if tied:
        _require_tied(files)


def _require_layers(files: Files, cfg: ModelConfig) -> None:
    """Errors: UserError when config.json has layers without any tensor. Comes before anything that takes time or memory for every layer."""
    found = {int(match[1]) for match in map(_LAYER.match, files) if match}
    if cfg.n_layers > len(found):
        raise UserError(
            f"{files.folder}: config.json says {cfg.n_layers} layers, but the files hold tensors of {len(found)}; they are of two models, "
            "or files are missing: download the model again"
        )


def _require_tied(files: Files, chunk: int = 4096) -> None:
    """Errors: UserError when lm_head.weight is not the embedding table. Compares chunks of rows, bit for bit."""
    shape = files.shape(EMBED)
    same = files.shape(HEAD) == shape and files.dtype(HEAD) == files.dtype(EMBED)
    for start in range(0, shape[0] if same else 0, chunk):
        rows = (slice(start, min(start + chunk, shape[0])), slice(0, shape[1]))
        if files.read(EMBED, rows).tobytes() != files.read(HEAD, rows).tobytes():
            same = False
            break
    if not same:
        raise UserError(
            f"{files.folder}: {HEAD} differs from {EMBED}, but config.json says tie_word_embeddings=true; set it to false if the head counts"
        )


def stored_dtype(files: Files, cfg: ModelConfig) -> str:
    """The one type of all tensors. Errors: UserError naming two tensors when there are several, or when it is float16."""
    found: dict[str, str] = {}
    for name, _, _ in hf_tensors(cfg):
        found.setdefault(files.dtype(name), name)
    if len(found) > 1:
        some = ", ".join(f"{name} is {dtype}" for dtype, name in found.items())
        raise UserError(f"{files.folder}: {some}; choose one type with --dtype")
    (dtype,) = found
    if dtype == "float16":
        raise UserError(f"{files.folder}: float16 weights; choose --dtype float32 (exact) or bfloat16 (rounded)")
    return dtype


def _bounds(index: slice, size: int) -> tuple[int, int]:
    start, stop, step = index.indices(size)
    if step != 1:
        raise ValueError(f"shards are contiguous, but {index} is not")
    return start, stop


def _read_group(index: Index, sizes: Sequence[int]) -> tuple[slice, Index, tuple[int, ...]]:
    """Axes that the file merges into one: the range of it to read, what to take of that, and the shape of what was read, axes apart.

    Only the first axis narrows the range; the others (a head's width) are cut afterwards.
    """
    if not sizes:
        return slice(0, 1), (), ()
    start, stop = _bounds(index[0], sizes[0])
    inner = math.prod(sizes[1:])
    return slice(start * inner, stop * inner), (slice(None), *index[1:]), (stop - start, *sizes[1:])


def read_layer(files: Files, name: str, spec: ParamSpec, index: Index) -> np.ndarray:
    """ours[index] of one layer, from the Hugging Face tensor `name`. index: one slice per axis of ours, without that of the layer."""
    body, inputs = _body(spec), spec.hf_inputs
    if not inputs and not spec.hf.endswith(".bias"):
        return files.read(name, index)
    in_range, in_take, in_shape = _read_group(index[:inputs], body[:inputs])
    out_range, out_take, out_shape = _read_group(index[inputs:], body[inputs:])
    if not inputs:
        return files.read(name, (out_range,)).reshape(out_shape)[out_take]
    block = files.read(name, (out_range, in_range)).reshape(*out_shape, *in_shape)[(*out_take, *in_take)]
    outputs = len(out_shape)
    return block.transpose(*range(outputs, block.ndim), *range(outputs))


def import_params(files: Files, cfg: ModelConfig, shardings: Any, *, rows: int, fresh: Mapping[int, Sequence[int]] | None = None) -> Params:
    """Parameters, placed by `shardings`, in cfg.param_dtype. Call check_names first.

    rows: vocabulary rows in the files; further rows of cfg.vocab_size get the mean of those (average logits, for tokens never trained).
    fresh: ids of new tokens and, of each, the ids that spelled its text before; they get a row of fresh_row.
    Host memory: one shard of one stacked tensor at a time.
    """
    dtype = jnp.dtype(cfg.param_dtype)

    def load(spec: ParamSpec, sharding: Any) -> jax.Array:
        def shard(index: Index) -> np.ndarray:
            if not _stacked(spec):
                return _vocab_shard(files, spec, index, rows, fresh or {}).astype(dtype, copy=False)
            first, last = _bounds(index[0], spec.shape[0])
            out = np.empty([stop - start for start, stop in map(_bounds, index, spec.shape)], dtype)
            for layer in range(first, last):
                out[layer - first] = read_layer(files, spec.hf.format(layer=layer), spec, index[1:])
            return out

        return jax.make_array_from_callback(spec.shape, sharding, shard)

    return jax.tree.map(load, param_specs(cfg), shardings, is_leaf=lambda x: isinstance(x, ParamSpec))


def _vocab_shard(files: Files, spec: ParamSpec, index: Index, rows: int, fresh: Mapping[int, Sequence[int]]) -> np.ndarray:
    """A shard of an unstacked tensor; rows of the vocabulary beyond those stored are their mean, those of `fresh` are new."""
    if "vocab" not in spec.axes or (spec.shape[spec.axes.index("vocab")] == rows and not fresh):
        return read_layer(files, spec.hf, spec, index)
    at = spec.axes.index("vocab")
    start, stop = _bounds(index[at], spec.shape[at])
    columns = index[1 - at]  # both tables are stored as [V, D]
    pieces = [files.read(spec.hf, (slice(start, min(stop, rows)), columns))] if start < rows else []
    mean, deviation = _moments(files, spec.hf, rows) if stop > rows or fresh else (np.zeros(0), 0.0)
    if stop > rows:
        inside = mean[columns]
        pieces.append(
            np.broadcast_to(inside.astype(files.read(spec.hf, (slice(0, 1), columns)).dtype), (stop - max(start, rows), inside.size))
        )
    table = np.concatenate(pieces)
    for i, spelled in fresh.items():
        if start <= i < stop:
            table[i - start] = fresh_row(files, spec.hf, i, spelled, mean, deviation)[columns]
    return table if at == 0 else table.T


def _moments(files: Files, name: str, rows: int, chunk: int = 4096) -> tuple[np.ndarray, float]:
    """Mean row, float64 [D], and standard deviation of all entries of a table."""
    width = files.shape(name)[1]
    total, squares = np.zeros(width), 0.0
    for low in range(0, rows, chunk):
        part = files.read(name, (slice(low, min(low + chunk, rows)), slice(0, width))).astype(np.float64)
        total += part.sum(0)
        squares += float((part**2).sum())
    mean = total / rows
    return mean, float(np.sqrt(max(squares / (rows * width) - float(mean.mean()) ** 2, 0.0)))


def fresh_row(files: Files, name: str, i: int, spelled: Sequence[int], mean: np.ndarray, deviation: float) -> np.ndarray:
    """The first row, float64 [D], of a new token in one table: the mean of the rows that spelled its text before (of all rows, where nothing
    did), so that the model reads and predicts it roughly where it did so before, and a tenth of the table's deviation in noise, so that no two
    are equal. The same on every mesh."""
    width = files.shape(name)[1]
    known = [files.read(name, (slice(at, at + 1), slice(0, width)))[0].astype(np.float64) for at in spelled]
    noise = np.random.default_rng([i, zlib.crc32(name.encode())]).normal(size=width)
    return (np.mean(known, axis=0) if known else mean) + 0.1 * deviation * noise


# -- writing ------------------------------------------------------------------------------------------------------------------------------


def tensor_sizes(cfg: ModelConfig) -> list[tuple[str, int]]:
    """(Hugging Face name, bytes) of every tensor in the order of the network."""
    width = jnp.dtype(cfg.param_dtype).itemsize
    return [(name, math.prod(hf_shape(spec)) * width) for name, spec, _ in hf_tensors(cfg)]


def export_tensors(params: Params, cfg: ModelConfig, fetch: Callable[[jax.Array], np.ndarray] = jax.device_get) -> Iterator[np.ndarray]:
    """Host arrays in Hugging Face's layout and in cfg.param_dtype, in the order of tensor_sizes; one layer at a time. fetch: brings one here."""
    by_name = {
        spec.hf: value for spec, value in zip(_specs(cfg), jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, jax.Array)), strict=True)
    }
    dtype = jnp.dtype(cfg.param_dtype)
    for _, spec, layer in hf_tensors(cfg):
        value = by_name[spec.hf]
        block = np.asarray(fetch(value if layer is None else value[layer]))
        inputs = spec.hf_inputs
        if inputs:
            block = block.transpose(*range(inputs, block.ndim), *range(inputs))
        yield np.ascontiguousarray(block.reshape(hf_shape(spec)).astype(dtype, copy=False))
