"""config.json of Hugging Face and our ModelConfig. What the decoder does not compute is refused by name, never ignored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lgrpo.config import ModelConfig, RopeScaling
from lgrpo.errors import UserError

# Fields that would change the computation, and the values under which they do not.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
    "use_sliding_window": (False, None),
    "logit_scale": (None,),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "num_experts": (None, 0),
    "is_encoder_decoder": (False, None),
}
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_FULL = "full_attention"
# Kept from the original config.json by an export: facts about the tokenizer and limits, none of which the decoder knows.
_CARRIED = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout")


def config_from_hf(raw: dict[str, Any], where: str) -> ModelConfig:
    """ModelConfig of a config.json. where: its path, for messages. dtype and param_dtype are left at float32: the tensors decide.

    Errors: UserError naming the field that is missing or that asks for something the decoder does not do.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in CLASSES:
        raise UserError(f"{where}: model_type {_short(family)} is not supported; use a {', '.join(CLASSES)} model")
    _refuse_unsupported(raw, family, where)

    def count(name: str, default: int | None = None) -> int:
        value = default if raw.get(name) is None else raw[name]
        if _number(value) is None or value <= 0 or value != int(value):
            raise UserError(f"{where}: {name} is {_short(value)}; it must be a positive integer")
        return int(value)

    heads, width = count("num_attention_heads"), count("hidden_size")
    kv_heads = count("num_key_value_heads", heads)
    if raw.get("head_dim") is None and width % heads and family != "qwen3":
        raise UserError(f"{where}: hidden_size {width} does not divide by num_attention_heads {heads}, and there is no head_dim")
    if heads % kv_heads:
        raise UserError(f"{where}: num_attention_heads {heads} does not divide by num_key_value_heads {kv_heads}; download the file again")
    head_dim = count("head_dim", 128 if family == "qwen3" else width // heads)  # each family's own default
    if head_dim % 2:
        raise UserError(f"{where}: head_dim is {head_dim}; rotary positions need an even one")
    theta, scaling = rope_from_hf(raw, where)
    return ModelConfig(
        family=family,
        vocab_size=count("vocab_size"),
        d_model=width,
        n_layers=count("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=count("intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_eps=_positive("rms_norm_eps", 1e-6 if raw.get("rms_norm_eps") is None else raw["rms_norm_eps"], where),
        tie_embeddings=_flag(raw, "tie_word_embeddings", where),
    )


def _short(value: Any) -> str:
    """A value for a message, in one line of bounded length."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def _number(value: Any) -> float | None:
    """A JSON number as a float; None for what is none: text, bool, NaN, infinities, integers beyond floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _positive(name: str, value: Any, where: str) -> float:
    found = _number(value)
    if found is None or found <= 0:
        raise UserError(f"{where}: {name} is {_short(value)}; it must be a positive finite number, so download the file again")
    return found


def _flag(raw: dict[str, Any], name: str, where: str) -> bool:
    value = raw.get(name, False)  # absent is False for all families
    if not isinstance(value, bool):
        raise UserError(f"{where}: {name} is {value!r}; it must be true or false")
    return value


def _texts(raw: dict[str, Any], name: str, where: str) -> list[str]:
    """A list of texts; [] where the file has none. Errors: UserError for anything else."""
    value = raw.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{where}: {name} is {_short(value)}; it must be a list of names, so download the file again")
    return value


def _refuse_unsupported(raw: dict[str, Any], family: str, where: str) -> None:
    for name, harmless in _HARMLESS.items():
        if (value := raw.get(name)) not in harmless:
            raise UserError(f"{where}: {name} is {_short(value)}, which lgrpo does not compute; only {harmless[0]!r} is supported")
    if family != "qwen2" and raw.get("attention_bias"):
        raise UserError(f"{where}: attention_bias is set, which lgrpo knows for qwen2 only; use a model without it")
    if other := sorted(set(_texts(raw, "layer_types", where)) - {_FULL}):
        raise UserError(f"{where}: layer_types has {_short(other[0])}; only {_FULL} is supported")
    classes = _texts(raw, "architectures", where) or [CLASSES[family]]
    if CLASSES[family] not in classes:
        raise UserError(f"{where}: architectures is {_short(classes)}; give the causal language model ({CLASSES[family]})")


# -- rotary positions ---------------------------------------------------------------------------------------------------------------------


def _rope_block(raw: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """One block of rotary settings, flat. Newer files may nest it by kind of layer, of which only full attention is computed."""
    block = raw.get(name)
    if block is None:
        return {}
    if not isinstance(block, dict):
        raise UserError(f"{where}: {name} is {_short(block)}; it must be an object")
    if not any(isinstance(value, dict) for value in block.values()):
        return block
    unused = raw.get("layer_types") is not None  # all of them are full attention, or the file has been refused
    if other := [key for key in block if key != _FULL and not unused]:
        raise UserError(f"{where}: {name} has settings for {_short(other[0])}; only {_FULL} is supported")
    inner = block.get(_FULL)
    if not isinstance(inner, dict):
        raise UserError(f"{where}: {name} has no settings for {_FULL}; download the file again")
    return inner


def _merged(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """All rotary settings of a file: `rope_parameters`, `rope_scaling` and `rope_theta`, which must not contradict each other."""
    top = {} if raw.get("rope_theta") is None else {"rope_theta": raw["rope_theta"]}
    found: dict[str, tuple[str, Any]] = {}
    for place, block in (
        ("rope_parameters", _rope_block(raw, "rope_parameters", where)),
        ("rope_scaling", _rope_block(raw, "rope_scaling", where)),
        ("the file itself", top),
    ):
        for name, value in block.items():
            name = "rope_type" if name == "type" else name
            first, known = found.setdefault(name, (place, value))
            if known != value:
                both = f"{_short(known)} in {first} and {_short(value)} in {place}"
                raise UserError(f"{where}: {name} is {both}; remove the one that does not count")
    return {name: value for name, (_, value) in found.items()}


def rope_from_hf(raw: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling of a config.json, from wherever it keeps them. Errors: UserError naming what is contradictory or not computed."""
    block = _merged(raw, where)
    kind = block.get("rope_type")
    if kind is None:
        if block.get("factor") is not None:
            raise UserError(f"{where}: the rotary settings have a factor, {_short(block['factor'])}, but no rope_type; add it")
        kind = "default"
    if kind not in ("default", "llama3"):
        raise UserError(f"{where}: rope type {_short(kind)} is not supported; only default and llama3 are")
    if (share := block.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise UserError(f"{where}: partial_rotary_factor is {_short(share)}, which lgrpo does not compute; only 1 is supported")
    theta = _positive("rope_theta", 10000.0 if block.get("rope_theta") is None else block["rope_theta"], where)
    if kind == "default":
        return theta, None
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [name for name in names if name not in block]:
        raise UserError(f"{where}: the llama3 rope scaling has no {missing[0]}; download the file again")
    factor, low, high, length = (_positive(name, block[name], where) for name in names)
    if factor < 1 or low >= high or length != int(length):
        raise UserError(
            f"{where}: llama3 rope scaling with factor {factor:g}, low_freq_factor {low:g}, high_freq_factor {high:g} and "
            f"original_max_position_embeddings {length:g}; use factor >= 1, low < high and a whole length"
        )
    return theta, RopeScaling(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position=int(length))


# -- ends of sequence ---------------------------------------------------------------------------------------------------------------------


def end_ids_of(raw: dict[str, Any], where: str) -> list[int]:
    """eos_token_id of a config.json or generation_config.json as a list, [] for none. Errors: UserError for what is no id."""
    value = raw.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise UserError(f"{where}: eos_token_id has {_short(i)}; it must be an id or a list of ids, so correct it")
    return ids


def with_ends(raw: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """`raw` with an eos_token_id that has all of `ids`: as it was where it names them, else those of the run. One id is no list."""
    known = raw.get("eos_token_id")
    if set(ids) <= set(known if isinstance(known, list) else [known]):
        return raw
    return raw | {"eos_token_id": ids[0] if len(ids) == 1 else list(ids)}


def config_to_hf(cfg: ModelConfig, original: dict[str, Any] | None, *, eos_ids: Sequence[int], min_positions: int) -> dict[str, Any]:
    """config.json of a model. original: that of the import, for what ModelConfig does not know; None: such fields get plain values.

    eos_ids: all tokens that end an answer, that of training first. min_positions: longest sequence in tokens, for max_position_embeddings
    when there is no original.
    """
    out: dict[str, Any] = {
        "architectures": [CLASSES[cfg.family]],
        "model_type": cfg.family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.d_ff,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.rms_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": cfg.tie_embeddings,
        "torch_dtype": cfg.param_dtype,
        "use_cache": True,
        "max_position_embeddings": max(2048, min_positions),
    }
    if cfg.rope_scaling is not None:
        fields = dataclasses.asdict(cfg.rope_scaling)
        length = fields.pop("original_max_position")
        out["rope_scaling"] = {"rope_type": "llama3", **fields, "original_max_position_embeddings": length}
    if cfg.family == "llama":
        out |= {"attention_bias": False, "mlp_bias": False}
    else:
        out |= {"use_sliding_window": False} | ({"attention_bias": False} if cfg.family == "qwen3" else {})
    carried = {name: original[name] for name in _CARRIED if original and original.get(name) is not None}
    return with_ends(out | carried, eos_ids)  # a run may have ended its answers with another token than the original
