"""A GGUF file, as llama.cpp writes them, in the place of a Hugging Face folder: its tensors under Hugging Face's names, and a config.json.

Weights are dequantized by the library `gguf` (an extra), one tensor at a time, to float32. Llama, Qwen2 and Qwen3; what else there may be in such
a file (experts, other rotary scalings) is refused by name. A model in several files is read from all of them.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from lgrpo.config import ModelConfig, RopeScaling
from lgrpo.errors import UserError
from lgrpo.models.decoder import rope_frequencies
from lgrpo.models.hf_config import CLASSES

# Hugging Face's name of a tensor by that of GGUF; those of a layer stand behind model.layers.N and blk.N.
_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"blk\.(\d{1,9})\.(\w+)\.(weight|bias)", re.ASCII)
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)
# rope_freqs.weight holds the factors of Llama-3 scaling, not its settings. These are the settings that are looked for; the first is the released one.
_FACTORS = "rope_freqs.weight"
_LENGTHS = (8192, *(2**n for n in range(4, 21)))
_LOW, _HIGH = 1.0, 4.0


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("import-hf: a .gguf file needs the library gguf; install it: pip install 'lgrpo[gguf]'") from None
    return gguf


def _open(path: pathlib.Path) -> Any:
    """The library's reader, which does not notice by itself that a file ends early (and then counts on for ever)."""
    gguf = _library()

    class Reader(gguf.GGUFReader):  # type: ignore[name-defined,misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            if int(offset) + int(count) * np.dtype(dtype).itemsize > self.data.size:
                raise ValueError("it ends too early")
            return super()._get(int(offset), dtype, count, override_order)

    try:
        return Reader(path)
    except Exception as error:  # the library documents none
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: not a readable GGUF file ({reason}); download it again") from error


def _open_all(path: pathlib.Path) -> list[Any]:
    """Readers of all files of the model that `path` is a part of. Errors: UserError when one is missing, or is another part than its name says."""
    reader = _open(path)
    count = _split(reader, "count")
    if count <= 1:
        return [reader]
    match = _PART.fullmatch(path.name)
    if match is None or int(match[2]) != count:
        raise UserError(f"{path}: one of {count} files of a model; name them NAME-00001-of-{count:05d}.gguf and so on")
    paths = [path.with_name(f"{match[1]}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    if missing := [part for part in paths if not part.is_file()]:
        raise UserError(f"{missing[0]}: no such file, but {path.name} is one of {count} ({len(missing)} are missing); download the rest")
    readers = [_open(part) for part in paths]
    for n, (part, reader) in enumerate(zip(paths, readers, strict=True)):
        if (_split(reader, "no"), _split(reader, "count")) != (n, count):
            raise UserError(f"{part}: it does not say that it is file {n + 1} of {count}; download it again")
    return readers


def _split(reader: Any, key: str) -> int:
    """`count` of files, or `no` of this one from 0; -1 where the file does not say."""
    field = reader.fields.get(f"split.{key}")
    value = -1 if field is None else field.contents()
    return value if isinstance(value, int) else -1


class GgufFile:
    """Tensors by Hugging Face name, as TensorFiles gives them, and metadata. Errors: UserError when it is no whole GGUF file of a known model."""

    def __init__(self, path: pathlib.Path) -> None:
        self.folder = path  # for messages, as in TensorFiles
        readers = _open_all(path)
        self._reader = readers[0]  # the others have nothing but their tensors
        self.family = self.get("general.architecture", str)
        if self.family not in CLASSES:
            raise UserError(f"{path}: architecture {self.family[:80]!r} is not supported; use a {', '.join(CLASSES)} model")
        self._tensors = {self._renamed(tensor.name): tensor for reader in readers for tensor in reader.tensors}
        if (wanted := self.get("split.tensors.count", int, len(self._tensors))) != len(self._tensors):
            raise UserError(f"{path}: its files hold {len(self._tensors)} tensors, not {wanted}; download the model again")
        self._factors = self._tensors.pop(_FACTORS, None)
        self._last: tuple[str, np.ndarray] = ("", np.zeros(0))

    # -- metadata ---------------------------------------------------------------------------------------------------------------------------

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of the metadata. Errors: UserError when it has another type, or is missing and there is no default."""
        field = self._reader.fields.get(key)
        if field is None:
            if default is None:
                raise UserError(f"{self.folder}: has no {key}; convert the model again")
            return default
        try:
            value = field.contents()
        except (UnicodeDecodeError, IndexError, ValueError) as error:
            raise UserError(f"{self.folder}: {key} cannot be read ({error}); convert the model again") from error
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{self.folder}: {key} is a {type(value).__name__}, not a {kind.__name__}; convert the model again")
        return value

    def config(self) -> dict[str, Any]:
        """What a config.json says of this model, apart from its end tokens. Errors: UserError for what the decoder does not compute."""

        def number(name: str, kind: type = int, default: Any = None) -> Any:
            return self.get(f"{self.family}.{name}", kind, default)

        for name in ("expert_count", "attention.sliding_window"):
            if number(name, int, 0):
                raise UserError(f"{self.folder}: {name} is {number(name)}, which lgrpo does not compute; use a model without it")
        heads, width = number("attention.head_count"), number("embedding_length")
        head_dim = number("attention.key_length", int, width // max(heads, 1))
        for name in ("attention.value_length", "rope.dimension_count"):
            if (found := number(name, int, head_dim)) != head_dim:
                raise UserError(f"{self.folder}: {name} is {found}, but a head has {head_dim}; lgrpo computes equal ones only")
        raw = {
            "architectures": [CLASSES[self.family]],
            "model_type": self.family,
            "vocab_size": self.shape(_TOP["token_embd.weight"])[0],
            "hidden_size": width,
            "num_hidden_layers": number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": number("attention.head_count_kv", int, heads),
            "head_dim": head_dim,
            "intermediate_size": number("feed_forward_length"),
            "hidden_act": "silu",
            "rms_norm_eps": _shortest(number("attention.layer_norm_rms_epsilon", float)),
            "rope_theta": _shortest(number("rope.freq_base", float, 10000.0)),
            "tie_word_embeddings": _TOP["output.weight"] not in self,
            "max_position_embeddings": number("context_length"),
        }
        kind = number("rope.scaling.type", str, "none")
        if kind != "none":
            raise UserError(f"{self.folder}: rotary scaling {kind[:40]!r} is not supported; use a model without it")
        if self._factors is not None:
            raw["rope_scaling"] = self._llama3_scaling(head_dim, raw["rope_theta"])
        return raw

    def _llama3_scaling(self, head_dim: int, theta: float) -> dict[str, Any]:
        """Settings of Llama-3 scaling that give the file's factors. Only ratios of them matter, so low_freq_factor is taken to be 1."""
        factors = self._dequantized(self._factors).reshape(-1)
        largest = float(factors.max(initial=0.0))

        def wanted(length: int) -> np.ndarray:
            plain = ModelConfig(head_dim=head_dim, rope_theta=theta)
            scaling = RopeScaling(factor=largest, low_freq_factor=_LOW, high_freq_factor=_HIGH, original_max_position=length)
            scaled = ModelConfig(head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
            return np.asarray(rope_frequencies(plain)) / np.asarray(rope_frequencies(scaled))

        usable = head_dim > 0 and theta > 0 and factors.shape == (head_dim // 2,) and np.isfinite(factors).all() and factors.min() >= 0.999
        for length in _LENGTHS if usable else ():
            if np.allclose(wanted(length), factors, rtol=1e-4):
                names = {"low_freq_factor": _LOW, "high_freq_factor": _HIGH, "original_max_position_embeddings": length}
                return {"rope_type": "llama3", "factor": largest, **names}
        raise UserError(f"{self.folder}: {_FACTORS} is not Llama-3 scaling with high_freq_factor {_HIGH:g}, the only one that is supported")

    # -- tensors, as in TensorFiles -----------------------------------------------------------------------------------------------------------

    @staticmethod
    def _renamed(name: str) -> str:
        """Hugging Face's name; a tensor without one keeps its own, and check_names refuses it."""
        match = _NAME.fullmatch(name)
        if match and match[2] in _LAYER:
            return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"
        return _TOP.get(name, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in Hugging Face's order. Errors: UserError when there is no such tensor."""
        if name not in self._tensors:
            raise UserError(f"{self.folder}: tensor {name} is missing; convert the model again")
        return tuple(int(size) for size in reversed(self._tensors[name].shape.tolist()))

    def dtype(self, name: str) -> str:
        """What `read` gives: always float32."""
        return "float32"

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """tensor[index] in float32, a copy. The whole of one tensor is kept: the shards of a table are read one after the other."""
        if self._last[0] != name:
            self._last = ("", np.zeros(0))  # let go of the one before
            self._last = (name, self._in_their_order(name, self._dequantized(self._tensors[name]).reshape(self.shape(name))))
        return self._last[1][index].copy()

    def _dequantized(self, tensor: Any) -> np.ndarray:
        gguf = _library()
        try:
            return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except (NotImplementedError, ValueError, AssertionError) as error:
            kind = tensor.tensor_type.name
            raise UserError(
                f"{self.folder}: tensor {tensor.name} is {kind}, which gguf cannot dequantize; use a file of another type"
            ) from error

    def _in_their_order(self, name: str, weight: np.ndarray) -> np.ndarray:
        """llama.cpp rotates neighbouring pairs and stores the rows of Llama's queries and keys accordingly; Hugging Face rotates halves."""
        which = {"q_proj.weight": "attention.head_count", "k_proj.weight": "attention.head_count_kv"}
        key = which.get(".".join(name.split(".")[-2:]))
        if self.family != "llama" or key is None:
            return weight
        heads = self.get(f"llama.{key}", int, self.get("llama.attention.head_count", int))
        rows, columns = weight.shape
        return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _shortest(value: float) -> float:
    """GGUF keeps numbers as float32: the shortest decimal that is the same float32, 1e-5 and not 9.99999974738e-06."""
    return float(str(np.float32(value)))
