"""GGUF files against the same model as a Hugging Face folder. They are written here, by the library that llama.cpp's converter uses."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from gguf_files import CONFIGS, TOKENS, as_llama_cpp, stored, write
from safetensors.numpy import load_file

from lgrpo.data.chat import has_template
from lgrpo.errors import UserError
from lgrpo.models.gguf_io import GgufFile
from lgrpo.models.hf_config import config_from_hf
from lgrpo.models.spec import abstract_params
from lgrpo.runs.checkpoint import load_params
from lgrpo.runs.convert import export_hf, import_hf

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("name", ["hf_llama", "hf_qwen2", "qwen3"])
def test_a_gguf_file_is_the_same_model_as_the_folder(tmp_path, name):
    cfg = import_hf(str(write(tmp_path / "m.gguf", name)), tmp_path / "w")
    wanted = config_from_hf(CONFIGS[name], "f")
    assert cfg.model == wanted and cfg.model.param_dtype == "float32"
    export_hf(tmp_path / "w", tmp_path / "out")
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), stored(name)
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        np.testing.assert_array_equal(ours[key], weight, err_msg=key)
    assert (cfg.data.eos, cfg.data.more_eos, cfg.data.template) == ("<eos>", ("<eot>",), "chat") and has_template(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [1, 3]
    assert import_hf(str(tmp_path / "out"), tmp_path / "again").model == cfg.model


# The error: half a unit of the largest weight, or of the range of a block where that has a lowest value of its own.
@pytest.mark.parametrize(
    ("kind", "apart", "dtype"),
    [("F16", 5e-4, "float32"), ("BF16", 4e-3, "float32"), ("Q8_0", 4e-3, "float32"), ("Q8_0", 4e-3, "bfloat16"), ("Q5_1", 1 / 31, "float32"),
     ("Q5_0", 1 / 16, "float32"), ("Q4_1", 1 / 15, "float32"), ("Q4_0", 1 / 8, "bfloat16")],
)  # fmt: skip
def test_quantised_weights_come_out_in_the_type_that_is_asked_for(tmp_path, kind, apart, dtype):
    path = write(tmp_path / "m.gguf", "hf_qwen2", gguf.GGMLQuantizationType[kind])
    cfg = import_hf(str(path), tmp_path / "w", dtype=dtype)
    params = load_params(tmp_path / "w", abstract_params(cfg.model))
    table = stored("hf_qwen2")["model.embed_tokens.weight"]
    assert params["embed"].dtype == jnp.dtype(dtype)
    error = np.abs(np.asarray(params["embed"], np.float32) - table).max() / np.abs(table).max()
    assert 0 < error < apart + (4e-3 if dtype == "bfloat16" else 0)


KINDS = """F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 MXFP4 NVFP4 IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S
    IQ4_NL IQ4_XS"""
KINDS = {kind: gguf.GGMLQuantizationType[kind] for kind in KINDS.split()}


def random_blocks(kind, rows, columns):
    """Bytes of a matrix of a quantised type: random ones, but with finite weights of a moderate size."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng, found, needed = np.random.default_rng(0), [], rows * columns // block
    while sum(map(len, found)) < needed:
        drawn = rng.integers(0, 256, (needed, size), np.uint8)
        with np.errstate(all="ignore"):
            largest = np.abs(gguf.quants.dequantize(drawn, kind)).max(-1)
        found.append(drawn[largest < 1e4])  # not so where it is NaN
    return np.concatenate(found)[:needed].reshape(rows, -1)


@pytest.mark.filterwarnings("ignore:overflow")  # of the library, over random scales
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_the_library_is_read_in_the_order_of_hugging_face(tmp_path, kind):
    kind = KINDS[kind]
    raw = random_blocks(kind, 32, 512)
    path = write(tmp_path / "m.gguf", tensors=lambda t: t.update({"blk.0.attn_q.weight": (raw, kind), "blk.0.ffn_up.weight": (raw, kind)}))
    file, weight = GgufFile(path), gguf.quants.dequantize(raw, kind).astype(np.float32)
    assert file.shape("model.layers.0.mlp.up_proj.weight") == (32, 512)
    np.testing.assert_array_equal(file.read("model.layers.0.mlp.up_proj.weight", (slice(3, 7),)), weight[3:7])
    query = file.read("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(as_llama_cpp(query, CONFIGS["hf_llama"]["num_attention_heads"]), weight)


def test_no_type_of_the_library_is_left_out():
    assert {kind.name for kind in gguf.GGMLQuantizationType if kind in gguf.quants._type_traits} | {"F16"} == set(KINDS)


def q4_k(block):
    """One block of Q4_K by the description of the format: 256 weights, eight scales and lowest values of 6 bits, two halves of a byte each."""
    scale, low = block[:4].view(np.float16).astype(np.float32)
    s, nibbles, out = [int(b) for b in block[4:16]], block[16:], []
    for j in range(8):
        six = s[j] & 63 if j < 4 else (s[j + 4] & 15) | (s[j - 4] >> 6) << 4
        floor = s[j + 4] & 63 if j < 4 else s[j + 4] >> 4 | (s[j] >> 6) << 4
        part = nibbles[j // 2 * 32 : j // 2 * 32 + 32]
        out += [scale * six * int(b >> 4 if j % 2 else b & 15) - low * floor for b in part]
    return out


def q6_k(block):
    """One block of Q6_K: lower four bits, upper two bits, sixteen scales, one scale of them."""
    lower, upper, scales, scale = (
        block[:128],
        block[128:192],
        block[192:208].view(np.int8),
        block[208:].view(np.float16).astype(np.float32)[0],
    )
    out = []
    for i in range(256):
        half, at = divmod(i, 128)
        low = int(lower[half * 64 + at % 64]) >> (4 * (at // 64)) & 15
        high = int(upper[half * 32 + at % 32]) >> (2 * (at // 32)) & 3
        out.append(scale * int(scales[i // 16]) * ((low | high << 4) - 32))
    return out


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("kind", "oracle"), [("Q4_K", q4_k), ("Q6_K", q6_k)])
def test_the_types_that_most_files_have_by_their_description(tmp_path, kind, oracle):
    kind = KINDS[kind]
    raw = random_blocks(kind, 4, 256)
    path = write(tmp_path / "m.gguf", tensors=lambda t: t.update({"blk.0.ffn_up.weight": (raw, kind)}))
    np.testing.assert_allclose(GgufFile(path).read("model.layers.0.mlp.up_proj.weight"), [oracle(row) for row in raw], rtol=1e-5, atol=1e-3)


# -- files ----------------------------------------------------------------------------------------------------------------------------------


def test_a_model_in_several_files_is_read_from_all_of_them(tmp_path):
    write(tmp_path / "m.gguf", split=5)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 5 and parts[0].name == "m-00001-of-00005.gguf"
    for at in (0, 2):
        import_hf(str(parts[at]), tmp_path / f"w{at}")
        export_hf(tmp_path / f"w{at}", tmp_path / f"out{at}")
        ours, theirs = load_file(tmp_path / f"out{at}" / "model.safetensors"), stored("hf_llama")
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in theirs)


def second_as_third(parts):
    parts[2].write_bytes(parts[1].read_bytes())


def of_other_model(parts):
    write(parts[0].with_name("o.gguf"), split=4)  # six files
    parts[1].write_bytes(parts[0].with_name("o-00002-of-00006.gguf").read_bytes())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda parts: parts[2].unlink(),
            r"m-00003-of-00005\.gguf: no such file, but m-00001-of-00005\.gguf is one of 5 \(1 are missing\)",
        ),
        (second_as_third, r"m-00003-of-00005\.gguf: it does not say that it is file 3 of 5"),
        (of_other_model, r"m-00002-of-00005\.gguf: it does not say that it is file 2 of 5"),
        (lambda parts: parts[3].write_bytes(parts[3].read_bytes()[:-3000]), r"m-00004-of-00005\.gguf: not a readable GGUF file"),
    ],
)
def test_a_part_that_is_missing_or_another_is_one_line(tmp_path, damage, says):
    write(tmp_path / "m.gguf", split=5)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    damage(parts)
    with pytest.raises(UserError, match=says) as error:
        import_hf(str(parts[0]), tmp_path / "w")
    assert "\n" not in str(error.value)


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
        ({"tokenizer__ggml__model": "t5"}, "tokenizer 't5' is not supported"),
        ({"tokenizer__ggml__model": "llama"}, r"has no tokenizer\.ggml\.scores"),
        ({"tokenizer__ggml__model": "llama", "tokenizer__ggml__scores": [0.0]}, "1 scores for 96 tokens"),
        ({"tokenizer__ggml__model": "llama", "tokenizer__ggml__scores": [float("nan")] * 96}, "not all are finite"),
        ({"tokenizer__ggml__pre": "deepseek-llm"}, "pre-tokenizer 'deepseek-llm' is not supported, only smollm, qwen2, llama-bpe"),
        ({"tokenizer__ggml__pre": None}, r"has no tokenizer\.ggml\.pre"),
        ({"tokenizer__ggml__merges": ["t h", "x yz"]}, "merges do not fit"),
        ({"tokenizer__ggml__tokens": [*TOKENS[:-1], TOKENS[0]]}, "95 of them different"),
        ({"tokenizer__ggml__eos_token_id": 96}, "eos_token_id is 96, but there are 96 tokens"),
        ({"general__architecture": "gemma3"}, "architecture 'gemma3' is not supported"),
        ({"split__count": 3}, "one of 3 files of a model; name them NAME-00001-of-00003"),
        ({"split__tensors__count": 99}, r"its files hold \d+ tensors, not 99"),
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
