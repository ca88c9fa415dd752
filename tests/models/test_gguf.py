"""GGUF files against the same model as a Hugging Face folder. They are written here, by the library that llama.cpp's converter uses."""

from __future__ import annotations

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file
from tokenizers import models, pre_tokenizers

from lgrpo.data.chat import has_template
from lgrpo.data.prompts import load_tokenizer
from lgrpo.errors import UserError
from lgrpo.models.decoder import rope_frequencies
from lgrpo.models.gguf_io import _LAYER, _TOP
from lgrpo.models.hf_config import config_from_hf
from lgrpo.models.spec import abstract_params
from lgrpo.runs.checkpoint import load_params
from lgrpo.runs.convert import export_hf, import_hf

gguf = pytest.importorskip("gguf")
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SPECIAL = ["<unk>", "<eos>", "<pad>", "<eot>", "<tool>"]
CHARACTERS = [chr(i) for i in range(33, 127) if chr(i) not in "\\^`|{}~@$%&*"] + ["Ġ", "Ċ"]
MERGES = ["t h", "th e", "Ġ the", "1 2", "12 3", "Ċ Ċ", "' s"]
TOKENS = [*SPECIAL, *CHARACTERS, *(line.replace(" ", "") for line in MERGES)][:96]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}:"
CONFIGS = {name: json.loads((GOLDEN / name / "config.json").read_text()) for name in ("hf_llama", "hf_qwen2")}


def as_llama_cpp(weight, heads):
    """Rows of queries or keys as llama.cpp's converter orders them: the two halves of a head interleaved."""
    out = np.empty_like(weight)
    half = weight.shape[0] // heads // 2
    for head in range(heads):
        rows = weight[head * 2 * half : (head + 1) * 2 * half]
        out[head * 2 * half : (head + 1) * 2 * half : 2], out[head * 2 * half + 1 : (head + 1) * 2 * half : 2] = rows[:half], rows[half:]
    return out


def write(path, name="hf_llama", kind=None, more=None, tensors=None, **changes):
    """A golden model as a GGUF file. kind: of the matrices; changes: metadata, None leaves a key out; tensors(dict) edits the tensors."""
    raw = CONFIGS[name]
    arch, heads, kv_heads = raw["model_type"], raw["num_attention_heads"], raw["num_key_value_heads"]
    theta = (raw.get("rope_parameters") or raw)["rope_theta"]
    values = {
        f"{arch}.block_count": raw["num_hidden_layers"], f"{arch}.context_length": 256, f"{arch}.embedding_length": raw["hidden_size"],
        f"{arch}.feed_forward_length": raw["intermediate_size"], f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads, f"{arch}.rope.freq_base": theta,
        f"{arch}.attention.layer_norm_rms_epsilon": raw["rms_norm_eps"], "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": [3] * 4 + [4] + [1] * (len(TOKENS) - 5),
        "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 3,
        "tokenizer.ggml.padding_token_id": 2, "tokenizer.chat_template": TEMPLATE,
    } | {key.replace("__", "."): value for key, value in changes.items()} | (more or {})  # fmt: skip
    writer = gguf.GGUFWriter(path, arch)
    kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool, list: writer.add_array}
    for key, value in values.items():
        if value is not None:
            kinds[type(value)](key, value)
    theirs = load_file(GOLDEN / name / "model.safetensors")
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
        if kind is not None and weight.ndim == 2 and weight.shape[1] % 32 == 0:  # a block of Q8_0
            writer.add_tensor(gguf_name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["hf_llama", "hf_qwen2"])
def test_a_gguf_file_is_the_same_model_as_the_folder(tmp_path, name):
    cfg = import_hf(str(write(tmp_path / "m.gguf", name)), tmp_path / "w")
    wanted = config_from_hf(CONFIGS[name], "f")
    assert cfg.model == wanted and cfg.model.param_dtype == "float32"
    export_hf(tmp_path / "w", tmp_path / "out")
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), load_file(GOLDEN / name / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        np.testing.assert_array_equal(ours[key], weight, err_msg=key)
    assert (cfg.data.eos, cfg.data.more_eos, cfg.data.template) == ("<eos>", ("<eot>",), "chat") and has_template(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [1, 3]
    assert import_hf(str(tmp_path / "out"), tmp_path / "again").model == cfg.model


@pytest.mark.parametrize(("kind", "apart"), [("F16", 5e-4), ("BF16", 4e-3), ("Q8_0", 4e-3)])  # half a unit of the largest weight
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_weights_come_out_in_the_type_that_is_asked_for(tmp_path, kind, apart, dtype):
    path = write(tmp_path / "m.gguf", "hf_qwen2", gguf.GGMLQuantizationType[kind])
    cfg = import_hf(str(path), tmp_path / "w", dtype=dtype)
    params = load_params(tmp_path / "w", abstract_params(cfg.model))
    table = load_file(GOLDEN / "hf_qwen2" / "model.safetensors")["model.embed_tokens.weight"]
    assert params["embed"].dtype == jnp.dtype(dtype)
    error = np.abs(np.asarray(params["embed"], np.float32) - table).max() / np.abs(table).max()
    assert 0 < error < apart + (4e-3 if dtype == "bfloat16" else 0)


def reference(pre, **model):
    """The tokenizer of the test's files, put together by hand."""
    vocab = {text: i for i, text in enumerate(TOKENS)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[tuple(line.split()) for line in MERGES], **model))
    inner.pre_tokenizer = pre
    inner.add_special_tokens(SPECIAL[:4])
    inner.add_tokens(SPECIAL[4:])
    return inner


PIECES = {
    # digits alone; a blank before a number is a piece of its own; contractions in lower case only
    "smollm": ["Ġthe", "Ġ", "1", "2", "3", "4", "'s", "D", "'", "S", "Ċ", "Ċ", "x"],
    "qwen2": ["Ġthe", "Ġ", "1", "2", "3", "4", "'s", "D", "'", "S", "ĊĊ", "x"],
    "llama-bpe": ["Ġthe", "Ġ", "123", "4", "'s", "D", "'", "S", "ĊĊ", "x"],
}


@pytest.mark.parametrize("kind", PIECES)
def test_text_is_cut_as_the_named_kind_cuts_it(tmp_path, kind):
    cfg = import_hf(str(write(tmp_path / "m.gguf", tokenizer__ggml__pre=kind)), tmp_path / "w")
    tokenizer = load_tokenizer(cfg.data)
    text = " the 1234's<eot>D'S\n\nx<tool>"
    pieces = [tokenizer.token_of(i) for i in tokenizer.encode(text)]
    assert [p for p in pieces if p not in SPECIAL] == PIECES[kind] and pieces.count("<eot>") == pieces.count("<tool>") == 1
    assert tokenizer.decode(tokenizer.encode(text)) == text
    if kind == "smollm":
        by_hand = reference(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]))
        assert tokenizer.encode(text) == by_hand.encode(text).ids


def test_rows_that_only_fill_up_are_no_tokens(tmp_path):
    types = [3] * 4 + [4] + [1] * (len(TOKENS) - 7) + [5, 5]
    tokens = [*TOKENS[:-2], "[PAD94]", "[PAD95]"]
    path = write(tmp_path / "m.gguf", tokenizer__ggml__tokens=tokens, tokenizer__ggml__token_type=types, tokenizer__ggml__merges=MERGES[:2])
    cfg = import_hf(str(path), tmp_path / "w")
    assert cfg.model.vocab_size == 96 and load_tokenizer(cfg.data).vocab_size == 94


def shortened(path):
    path.write_bytes(path.read_bytes()[:-5000])


def huge_array(path):
    """The number of merges, in the metadata, becomes 2**60: nothing of that is in the file."""
    raw = bytearray(path.read_bytes())
    at = raw.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    raw[at : at + 8] = (2**60).to_bytes(8, "little")
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer__ggml__model": "llama"}, "tokenizer 'llama' is not supported"),
        ({"tokenizer__ggml__pre": "deepseek-llm"}, "pre-tokenizer 'deepseek-llm' is not supported, only smollm, qwen2, llama-bpe"),
        ({"tokenizer__ggml__pre": None}, r"has no tokenizer\.ggml\.pre"),
        ({"tokenizer__ggml__merges": ["t h", "x yz"]}, "merges do not fit"),
        ({"tokenizer__ggml__tokens": [*TOKENS[:-1], TOKENS[0]]}, "95 of them different"),
        ({"tokenizer__ggml__eos_token_id": 96}, "eos_token_id is 96, but there are 96 tokens"),
        ({"general__architecture": "gemma3"}, "architecture 'gemma3' is not supported"),
        ({"split__count": 3}, "one of 3 files"),
        ({"llama__expert_count": 8}, "expert_count is 8"),
        ({"llama__rope__scaling__type": "yarn"}, "scaling 'yarn' is not supported"),
        ({"llama__rope__freq_base": float("nan")}, "rope_theta is nan|rope_freqs"),
        ({"llama__rope__dimension_count": 4}, "dimension_count is 4, but a head has 8"),
        ({"llama__block_count": 10**6}, "says 1000000 layers, but the files hold tensors of 2"),
        ({"llama__block_count": "two"}, "block_count is a str, not a int"),
        ({"llama__embedding_length": None}, r"has no llama\.embedding_length"),
        ({"llama__attention__layer_norm_rms_epsilon": float("inf")}, "rms_norm_eps is inf"),
        ({"tensors": lambda t: t.pop("blk.1.attn_q.weight")}, r"tensor model\.layers\.1\.self_attn\.q_proj\.weight is missing"),
        ({"tensors": lambda t: t.pop("token_embd.weight")}, r"tensor model\.embed_tokens\.weight is missing"),
        ({"tensors": lambda t: t.update({"blk.0.attn_q.bias": np.ones(32, np.float32)})}, r"q_proj\.bias has no place"),
        ({"tensors": lambda t: t.update({"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)})}, "is not Llama-3 scaling"),
        ({"tensors": lambda t: t.update({"output_norm.weight": np.full(32, np.nan, np.float32)})}, "tensors are not finite"),
        ({"tensors": lambda t: t.update({"output_norm.weight": np.ones(32, np.int32)})}, "is I32, which gguf cannot dequantize"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, says):
    with pytest.raises(UserError, match=says) as error:
        import_hf(str(write(tmp_path / "m.gguf", **changes)), tmp_path / "w")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    "damage", [shortened, huge_array, lambda path: path.write_bytes(b"GGUF"), lambda path: path.write_bytes(b"x" * 64)]
)
def test_damaged_files_are_one_line(tmp_path, damage):
    path = write(tmp_path / "m.gguf")
    damage(path)
    with pytest.raises(UserError, match="not a readable GGUF file") as error:
        import_hf(str(path), tmp_path / "w")
    assert "\n" not in str(error.value)


def test_where_the_file_is(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file"):
        import_hf(str(tmp_path / "none.gguf"), tmp_path / "w")
    write(tmp_path / "m.gguf")
    with pytest.raises(UserError, match="has no revisions"):
        import_hf(str(tmp_path / "m.gguf"), tmp_path / "w", revision="v1")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"give that file: import-hf .*m\.gguf"):
        import_hf(str(tmp_path), tmp_path / "w")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'lgrpo\[gguf\]'"):
        import_hf(str(tmp_path / "m.gguf"), tmp_path / "w")
