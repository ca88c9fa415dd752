"""Tokenizers of GGUF files against tokenizers put together by hand, and against SentencePiece."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tokenizers
from gguf_files import MERGES, SPECIAL, TOKENS, write
from tokenizers import models, pre_tokenizers

from lgrpo.data.prompts import load_tokenizer
from lgrpo.runs.convert import import_hf


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
