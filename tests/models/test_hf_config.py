"""config.json to ModelConfig and back, and what is refused."""

from __future__ import annotations

import json
import pathlib

import pytest

from lgrpo.config import ModelConfig, RopeScaling
from lgrpo.errors import UserError
from lgrpo.models import presets
from lgrpo.models.hf_config import config_from_hf, config_to_hf

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "max_position_embeddings": 131072,
    "eos_token_id": [128001, 128008, 128009],
}
QWEN = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
}


def shape_only(cfg: ModelConfig) -> ModelConfig:
    import dataclasses

    return dataclasses.replace(cfg, dtype="float32", param_dtype="float32", remat=False)


def test_the_released_configs_are_our_presets():
    assert config_from_hf(LLAMA, "f") == shape_only(presets.LLAMA_3_2_1B)
    assert config_from_hf(QWEN, "f") == shape_only(presets.QWEN2_5_MATH_7B)


@pytest.mark.parametrize("raw", [LLAMA, QWEN])
def test_round_trip(raw):
    cfg = config_from_hf(raw, "f")
    out = json.loads(json.dumps(config_to_hf(cfg, raw, eos_id=128009, min_positions=10)))
    assert config_from_hf(out, "f") == cfg
    assert out["max_position_embeddings"] == raw.get("max_position_embeddings", 2048)
    assert out["eos_token_id"] == raw.get("eos_token_id", 128009)
    assert config_to_hf(cfg, raw, eos_id=7, min_positions=10)["eos_token_id"] == 7


def test_newer_files_keep_rotary_settings_together():
    cfg = config_from_hf(json.loads((GOLDEN / "hf_llama" / "config.json").read_text()), "f")
    assert cfg.rope_theta == 10000.0 and cfg.tie_embeddings
    assert cfg.rope_scaling == RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=16)


def test_what_a_file_leaves_out_is_the_familys_default():
    """As transformers reads it: older files leave out what had one value only."""
    needed = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    cfg = config_from_hf({name: QWEN[name] for name in needed}, "f")
    assert (cfg.rms_eps, cfg.rope_theta, cfg.rope_scaling, cfg.tie_embeddings) == (1e-6, 10000.0, None, False)
    assert (cfg.n_kv_heads, cfg.head_dim) == (28, 128)


@pytest.mark.parametrize(
    ("base", "changes", "says"),
    [
        (LLAMA, {"model_type": "mistral"}, "model_type 'mistral'"),
        (LLAMA, {"model_type": None}, "model_type None"),
        (LLAMA, {"attention_bias": True}, "attention_bias"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope type 'linear'"),
        (LLAMA, {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "no low_freq_factor"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA, {"hidden_size": None}, "hidden_size is None"),
        (LLAMA, {"num_hidden_layers": "16"}, "num_hidden_layers is '16'"),
        (LLAMA, {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        (LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForCausalLM"),
        (QWEN, {"use_sliding_window": True}, "use_sliding_window"),
        (QWEN, {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        (QWEN, {"num_attention_heads": 30}, "does not divide"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(base, changes, says):
    with pytest.raises(UserError, match=says) as error:
        config_from_hf(base | changes, "x/config.json")
    assert str(error.value).startswith("x/config.json: ")
