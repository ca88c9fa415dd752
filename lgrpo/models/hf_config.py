"""config.json of Hugging Face and our ModelConfig. What the decoder does not compute is refused by name, never ignored."""

from __future__ import annotations

import dataclasses
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
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Kept from the original config.json by an export: facts about the tokenizer and limits, none of which the decoder knows.
_CARRIED = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout")


def config_from_hf(raw: dict[str, Any], where: str) -> ModelConfig:
    """ModelConfig of a config.json. where: its path, for messages. dtype and param_dtype are left at float32: the tensors decide.

    Errors: UserError naming the field that is missing or that asks for something the decoder does not do.
    """
    family = raw.get("model_type")
    if family not in _CLASSES:
        raise UserError(f"{where}: model_type {family!r} is not supported; use a llama or qwen2 model")
    _refuse_unsupported(raw, family, where)

    def number(name: str, kind: type = int, default: Any = None) -> Any:
        value = raw.get(name, default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0 or (kind is int and value != int(value)):
            raise UserError(f"{where}: {name} is {value!r}; it must be a positive {'number' if kind is float else 'integer'}")
        return kind(value)

    heads, width = number("num_attention_heads"), number("hidden_size")
    if raw.get("head_dim") is None and width % heads:
        raise UserError(f"{where}: hidden_size {width} does not divide by num_attention_heads {heads}, and there is no head_dim")
    theta, scaling = _rope(raw, where)
    return ModelConfig(
        family=family,
        vocab_size=number("vocab_size"),
        d_model=width,
        n_layers=number("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=number("num_key_value_heads", default=heads),
        head_dim=number("head_dim", default=width // heads),
        d_ff=number("intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_eps=number("rms_norm_eps", float, 1e-6),
        tie_embeddings=_flag(raw, "tie_word_embeddings", where),
    )


def _flag(raw: dict[str, Any], name: str, where: str) -> bool:
    value = raw.get(name, False)  # absent is False for both families
    if not isinstance(value, bool):
        raise UserError(f"{where}: {name} is {value!r}; it must be true or false")
    return value


def _refuse_unsupported(raw: dict[str, Any], family: str, where: str) -> None:
    for name, harmless in _HARMLESS.items():
        if (value := raw.get(name)) not in harmless:
            raise UserError(f"{where}: {name} is {value!r}, which lgrpo does not compute; only {harmless[0]!r} is supported")
    if family == "llama" and raw.get("attention_bias"):
        raise UserError(f"{where}: attention_bias is true, which lgrpo knows for qwen2 only; use a model without it")
    if other := sorted({str(kind) for kind in raw.get("layer_types") or []} - {"full_attention"}):
        raise UserError(f"{where}: layer_types has {other[0]!r}; only full_attention is supported")
    classes = raw.get("architectures") or [_CLASSES[family]]
    if _CLASSES[family] not in classes:
        raise UserError(f"{where}: architectures is {classes}; give the causal language model ({_CLASSES[family]})")


def _rope(raw: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_theta` and `rope_scaling`, or from the `rope_parameters` of newer files."""
    block = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(block, dict):
        raise UserError(f"{where}: rope_scaling is {block!r}; it must be an object")
    theta = block.get("rope_theta", raw.get("rope_theta", 10000.0))
    kind = block.get("rope_type", block.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise UserError(f"{where}: rope type {kind!r} is not supported; only default and llama3 are")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [name for name in names if name not in block]:
        raise UserError(f"{where}: the llama3 rope scaling has no {missing[0]}; download the file again")
    factor, low, high, length = (block[name] for name in names)
    return float(theta), RopeScaling(
        factor=float(factor), low_freq_factor=float(low), high_freq_factor=float(high), original_max_position=int(length)
    )


def config_to_hf(cfg: ModelConfig, original: dict[str, Any] | None, *, eos_id: int, min_positions: int) -> dict[str, Any]:
    """config.json of a model. original: that of the import, for what ModelConfig does not know; None: such fields get plain values.

    min_positions: longest sequence in tokens, for max_position_embeddings when there is no original.
    """
    out: dict[str, Any] = {
        "architectures": [_CLASSES[cfg.family]],
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
        "eos_token_id": eos_id,
        "max_position_embeddings": max(2048, min_positions),
    }
    if cfg.rope_scaling is not None:
        fields = dataclasses.asdict(cfg.rope_scaling)
        length = fields.pop("original_max_position")
        out["rope_scaling"] = {"rope_type": "llama3", **fields, "original_max_position_embeddings": length}
    if cfg.family == "llama":
        out |= {"attention_bias": False, "mlp_bias": False}
    else:
        out["use_sliding_window"] = False
    carried = {name: original[name] for name in _CARRIED if original and original.get(name) is not None}
    ends = carried.get("eos_token_id", eos_id)
    if eos_id not in (ends if isinstance(ends, list) else [ends]):
        carried["eos_token_id"] = eos_id  # the run ended its answers with another token than the original
    return out | carried
