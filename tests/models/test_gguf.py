"""GGUF files against the same model as a Hugging Face folder. They are written here, by the library that llama.cpp's converter uses."""

from __future__ import annotations

import io
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
from lgrpo.models.gguf_io import _LAYER, _TOP, GgufFile
from lgrpo.models.hf import hf_shape, hf_tensors
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
    table = load_file(GOLDEN / "hf_qwen2" / "model.safetensors")["model.embed_tokens.weight"]
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


# -- SentencePiece --------------------------------------------------------------------------------------------------------------------------

SENTENCES = """The cat sat on the mat, and the other cat sat there too.
What is 12 + 345? It is 357; the sum of the two numbers is what they ask for.
    indented text, with    many blanks ==== and aaaa aaaaa aaaaaaa repeated letters
She sold 48 clips in April, then half as many in May: 48 + 24 = 72 clips altogether.
"""


@pytest.fixture(scope="module")
def sentencepiece():
    """A BPE model of SentencePiece as Llama's is: bytes stand in, digits apart, blanks kept, text as it is."""
    library, out = pytest.importorskip("sentencepiece"), io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES.splitlines()), model_writer=out, model_type="bpe", vocab_size=400, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
        user_defined_symbols=["<tool>"], minloglevel=2,
    )  # fmt: skip
    return library.SentencePieceProcessor(model_proto=out.getvalue())


def of_sentencepiece(model, **changes):
    """The metadata that llama.cpp's converter writes of it, and a table with as many rows."""
    tokens = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    types = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in range(len(tokens))]
    types[tokens.index("<tool>")] = 4
    keys = {
        "model": "llama", "pre": "default", "tokens": tokens, "scores": [model.get_score(i) for i in range(len(tokens))], "merges": None,
        "token_type": types, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "eot_token_id": None, "padding_token_id": None,
    } | changes  # fmt: skip
    table = np.random.default_rng(0).normal(size=(len(tokens), 32)).astype(np.float32)
    return {"tensors": lambda t: t.update({"token_embd.weight": table}), **{f"tokenizer__ggml__{k}": v for k, v in keys.items()}}


def some_texts(count):
    rng = np.random.default_rng(0)
    pieces = [*SENTENCES.split(), *"abcdefghijklmnop \n\t0123456789,.=<>", "   ", "aaaa", "é", "漢", "😀", "\u0301", "▁", "the the"]
    return (
        ["".join(rng.choice(pieces, rng.integers(1, 30))) for _ in range(count)]
        + ["a" * n for n in range(1, 30)]
        + [" " * n for n in range(1, 9)]
    )


def test_a_sentencepiece_tokenizer_gives_the_ids_of_sentencepiece(tmp_path, sentencepiece):
    cfg = import_hf(str(write(tmp_path / "m.gguf", **of_sentencepiece(sentencepiece))), tmp_path / "w")
    tokenizer = load_tokenizer(cfg.data)
    for text in [*SENTENCES.splitlines(), *some_texts(500), " both ends ", "<0x0A>"]:
        ids = tokenizer.encode(text)
        assert ids == sentencepiece.encode(text), text
        assert tokenizer.decode(ids) == text.replace("▁", " ")  # which is how SentencePiece writes a blank
    for token in ("</s>", "<tool>"):  # behind a token of its own the text begins anew
        after = [sentencepiece.piece_to_id(token), *sentencepiece.encode("the")]
        assert tokenizer.encode(f"the{token}the") == [*sentencepiece.encode("the"), *after]
    assert tokenizer.inner.encode("the").ids == [1, *sentencepiece.encode("the")]  # as the original adds it
    assert (cfg.data.eos, cfg.data.eos_id) == ("</s>", 2)


def test_what_a_sentencepiece_file_leaves_out_is_as_in_llama_cpp(tmp_path, sentencepiece):
    unnamed = dict.fromkeys(("bos_token_id", "eos_token_id", "unknown_token_id"))
    path = write(tmp_path / "m.gguf", **of_sentencepiece(sentencepiece, add_space_prefix=False, add_bos_token=False, **unnamed))
    cfg = import_hf(str(path), tmp_path / "w")
    tokenizer = load_tokenizer(cfg.data)
    assert cfg.data.eos == "</s>" and tokenizer.inner.encode(" the").ids == sentencepiece.encode("the")
    assert tokenizer.encode("the") != sentencepiece.encode("the") and tokenizer.decode(tokenizer.encode(" the")) == " the"


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
