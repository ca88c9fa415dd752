"""GGUF files for the tests, written by the library that llama.cpp's converter uses: the golden models, and one of Qwen3."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from lgrpo.models.decoder import rope_frequencies
from lgrpo.models.gguf_io import _LAYER, _TOP
from lgrpo.models.hf import hf_shape, hf_tensors
from lgrpo.models.hf_config import config_from_hf

gguf = pytest.importorskip("gguf")
GOLDEN = pathlib.Path(__file__).parent / "golden"
SPECIAL = ["<unk>", "<eos>", "<pad>", "<eot>", "<tool>"]
CHARACTERS = [chr(i) for i in range(33, 127) if chr(i) not in "\\^`|{}~@$%&*"] + ["Ġ", "Ċ"]
MERGES = ["t h", "th e", "Ġ the", "1 2", "12 3", "Ċ Ċ", "' s"]
TOKENS = [*SPECIAL, *CHARACTERS, *(line.replace(" ", "") for line in MERGES)][:96]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}:"
CONFIGS = {name: json.loads((GOLDEN / name / "config.json").read_text()) for name in ("hf_llama", "hf_qwen2")}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True}
CONFIGS["qwen3"] = CONFIGS["hf_qwen2"] | QWEN3 | {"attention_bias": False}


def stored(name):
    """Tensors of a model by Hugging Face name."""
    if name != "qwen3":
        return load_file(GOLDEN / name / "model.safetensors")
    rng = np.random.default_rng(0)
    return {hf: rng.normal(size=hf_shape(spec)).astype(np.float32) for hf, spec, _ in hf_tensors(config_from_hf(CONFIGS[name], "f"))}


def as_llama_cpp(weight, heads):
    """Rows of queries or keys as llama.cpp's converter orders them: the two halves of a head interleaved."""
    out = np.empty_like(weight)
    half = weight.shape[0] // heads // 2
    for head in range(heads):
        rows = weight[head * 2 * half : (head + 1) * 2 * half]
        out[head * 2 * half : (head + 1) * 2 * half : 2], out[head * 2 * half + 1 : (head + 1) * 2 * half : 2] = rows[:half], rows[half:]
    return out


def write(path, name="hf_llama", kind=None, more=None, tensors=None, split=0, **changes):
    """A golden model as a GGUF file. kind: of the matrices; changes: metadata, None leaves a key out; tensors(dict) edits the tensors, of which
    one may be (bytes, its type); split: tensors in each of several files."""
    raw = CONFIGS[name]
    arch, heads, kv_heads = raw["model_type"], raw["num_attention_heads"], raw["num_key_value_heads"]
    theta = (raw.get("rope_parameters") or raw)["rope_theta"]
    values = {
        f"{arch}.block_count": raw["num_hidden_layers"], f"{arch}.context_length": 256, f"{arch}.embedding_length": raw["hidden_size"],
        f"{arch}.feed_forward_length": raw["intermediate_size"], f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads, f"{arch}.attention.key_length": raw["head_dim"] if arch == "qwen3" else None,
        f"{arch}.rope.freq_base": theta,
        f"{arch}.attention.layer_norm_rms_epsilon": raw["rms_norm_eps"], "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": [3] * 4 + [4] + [1] * (len(TOKENS) - 5),
        "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 3,
        "tokenizer.ggml.padding_token_id": 2, "tokenizer.chat_template": TEMPLATE,
    } | {key.replace("__", "."): value for key, value in changes.items()} | (more or {})  # fmt: skip
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool, list: writer.add_array}
    for key, value in values.items():
        if value is not None:
            kinds[type(value)](key, value)
    theirs = stored(name)
    found = {gguf_name: theirs[hf] for gguf_name, hf in _TOP.items() if hf in theirs}
    for layer in range(raw["num_hidden_layers"]):
        for part in ("weight", "bias"):
            for gguf_name, hf in _LAYER.items():
                if (weight := theirs.get(f"model.layers.{layer}.{hf}.{part}")) is not None:
                    if arch == "llama" and gguf_name in ("attn_q", "attn_k"):
                        weight = as_llama_cpp(weight, heads if gguf_name == "attn_q" else kv_heads)
                    found[f"blk.{layer}.{gguf_name}.{part}"] = weight
    if arch == "llama":
        cfg = config_from_hf(raw, "f")
        plain = theta ** (-np.arange(0, cfg.head_dim, 2) / cfg.head_dim)
        found["rope_freqs.weight"] = (plain / np.asarray(rope_frequencies(cfg))).astype(np.float32)
    if tensors is not None:
        tensors(found)
    for gguf_name, weight in found.items():
        if isinstance(weight, tuple):
            writer.add_tensor(gguf_name, weight[0], raw_dtype=weight[1])
        elif kind is not None and weight.ndim == 2 and weight.shape[1] % 32 == 0:  # a block of Q8_0
            writer.add_tensor(gguf_name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
