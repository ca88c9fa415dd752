"""config.json to ModelConfig and back, and what is refused."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

import lgrpo
from lgrpo.config import ModelConfig, RopeScaling
from lgrpo.errors import UserError
from lgrpo.models import presets
from lgrpo.models.hf_config import config_from_hf, config_to_hf
from lgrpo.models.spec import param_specs

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
QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "attention_bias": False,
    "use_sliding_window": False,
    "layer_types": ["full_attention"] * 28,
    "tie_word_embeddings": True,
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
    out = json.loads(json.dumps(config_to_hf(cfg, raw, eos_ids=(128009,), min_positions=10)))
    assert config_from_hf(out, "f") == cfg
    assert out["max_position_embeddings"] == raw.get("max_position_embeddings", 2048)
    assert out["eos_token_id"] == raw.get("eos_token_id", 128009)
    assert config_to_hf(cfg, raw, eos_ids=(7,), min_positions=10)["eos_token_id"] == 7


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


BIG = 10**5000
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 16,
}
SCALED = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=16)
NO_ROPE = {key: value for key, value in LLAMA.items() if not key.startswith("rope")}


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({"rope_parameters": LLAMA3}, 500000.0, SCALED),
        ({"rope_parameters": {"full_attention": LLAMA3}}, 500000.0, SCALED),
        ({"rope_parameters": {"full_attention": LLAMA3, "sliding_attention": {}}, "layer_types": ["full_attention"]}, 500000.0, SCALED),
        ({"rope_parameters": {"rope_theta": 500000.0}, "rope_scaling": LLAMA3}, 500000.0, SCALED),
        ({"rope_scaling": LLAMA3 | {"type": "llama3"}, "rope_theta": 500000}, 500000.0, SCALED),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1.0}}, 1e6, None),
        ({"rope_theta": None}, 10000.0, None),
        ({"rope_parameters": None, "rope_scaling": None, "rope_theta": 5}, 5.0, None),
        ({"rope_parameters": {}}, 10000.0, None),
    ],
)
def test_rotary_settings_wherever_a_file_keeps_them(changes, theta, scaling):
    cfg = config_from_hf(NO_ROPE | changes, "f")
    assert (cfg.rope_theta, cfg.rope_scaling) == (theta, scaling)


def scaled(**changes):
    return {"rope_parameters": LLAMA3 | changes}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *(({"rope_theta": bad}, "rope_theta is") for bad in (0, -1, float("nan"), float("inf"), "10000", True, [1], BIG)),
        *(({"rope_parameters": {"rope_theta": bad}}, "rope_theta is") for bad in (0, -1, float("nan"), "x", BIG)),
        *((scaled(factor=bad), "factor") for bad in (0, None, -8, 0.5, "8", float("nan"))),
        (scaled(low_freq_factor=None), "low_freq_factor is None"),
        (scaled(low_freq_factor=4.0), "low < high"),
        (scaled(original_max_position_embeddings=0), "original_max_position_embeddings is 0"),
        (scaled(original_max_position_embeddings=16.5), "whole length"),
        (scaled(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
        *((scaled(rope_type=kind), f"rope type '{kind}'") for kind in ("yarn", "linear", "dynamic", "longrope")),
        (scaled(rope_type=["llama3"]), r"rope type \['llama3'\]"),
        ({"rope_scaling": {"factor": 8.0}}, "but no rope_type"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}}, "rope type 'yarn'"),
        ({"rope_parameters": {"full_attention": LLAMA3, "sliding_attention": LLAMA3}}, "settings for 'sliding_attention'"),
        ({"rope_parameters": {"sliding_attention": LLAMA3}, "layer_types": ["full_attention"]}, "no settings for full_attention"),
        ({"rope_parameters": LLAMA3, "rope_theta": 10000.0}, "500000.0 in rope_parameters and 10000.0 in the file itself"),
        ({"rope_parameters": [1]}, "must be an object"),
        ({"rope_scaling": "llama3"}, "must be an object"),
        *(({"rms_norm_eps": bad}, "rms_norm_eps is") for bad in (float("nan"), float("inf"), 0, -1e-5, "1e-5", True)),
        *(({"num_hidden_layers": bad}, "num_hidden_layers is") for bad in (float("nan"), float("inf"), 0, 1.5, True, [2], BIG)),
        *(({"model_type": bad}, "model_type") for bad in (["llama"], {}, 3, None)),
        *(({"architectures": bad}, "architectures is") for bad in ("LlamaForCausalLM", 3, [None], {"a": 1})),
        *(({"layer_types": bad}, "layer_types is") for bad in (5, "full_attention", [5], {"full_attention": 1})),
        ({"head_dim": 7}, "even"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
    ],
)
def test_values_that_are_none_are_one_line(changes, says):
    with pytest.raises(UserError, match=says) as error:
        config_from_hf(NO_ROPE | changes, "x/config.json")
    assert str(error.value).startswith("x/config.json: ") and "\n" not in str(error.value) and len(str(error.value)) < 300


def test_qwen3_has_heads_wider_than_its_width_and_no_biases():
    cfg = config_from_hf(QWEN3, "config.json")
    assert (cfg.family, cfg.head_dim, cfg.n_heads, cfg.d_model, cfg.rope_theta) == ("qwen3", 128, 16, 1024, 1e6)
    names = set(param_specs(cfg)["blocks"])
    assert {"q_norm", "k_norm"} <= names and not {"bq", "bk", "bv"} & names
    assert config_from_hf({n: v for n, v in QWEN3.items() if n != "head_dim"}, "config.json").head_dim == 128
    written = config_to_hf(cfg, None, eos_ids=[1], min_positions=64)
    assert written["architectures"] == ["Qwen3ForCausalLM"] and config_from_hf(written, "config.json") == cfg
    with pytest.raises(UserError, match="attention_bias"):
        config_from_hf(QWEN3 | {"attention_bias": True}, "config.json")


def test_the_lines_that_the_documents_show_are_those_of_the_code():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page[page.index("## Write a model family") :], re.S)
    code = [(pathlib.Path(lgrpo.__file__).parent / "models" / name).read_text() for name in ("spec.py", "decoder.py", "hf_config.py")]
    assert len(blocks) == 3 and all(block in text for block, text in zip(blocks, code, strict=True))
