"""The tokenizer and the chat template of a GGUF file as the files of a Hugging Face folder.

Byte-level BPE (`tokenizer.ggml.model` gpt2): how text is cut before the merges is not in the file but named in it; the kinds below are known. And
SentencePiece's BPE (llama), which has scores in the place of merges.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from lgrpo.errors import UserError
from lgrpo.models.gguf_io import GgufFile

# How the tokenizers of Llama 3 and Qwen2 cut text; they differ in how many digits stay together.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_KINDS = ("smollm", "qwen2", "llama-bpe")
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6  # of tokenizer.ggml.token_type
# llama.cpp's ids of named tokens where a file with a SentencePiece tokenizer names none.
_DEFAULTS = {"unknown": 0, "bos": 1, "eos": 2}
_NAMED = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
_ENDS = ("eos", "eot", "eom")


def _pre_tokenizer(kind: str) -> Any:
    if kind == "smollm":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    pattern = tokenizers.Regex(_SPLIT.replace("DIGITS", "{1,3}" if kind == "llama-bpe" else ""))
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def build_tokenizer(file: GgufFile) -> tokenizers.Tokenizer:
    """The tokenizer of a GGUF file. Errors: UserError naming what is missing or not supported."""
    where = file.folder
    kind = file.get("tokenizer.ggml.model", str)
    if kind not in (_BYTE_LEVEL, _SENTENCEPIECE):
        known = f"only {_BYTE_LEVEL} (byte-level BPE) and {_SENTENCEPIECE} (SentencePiece's BPE)"
        raise UserError(f"{where}: tokenizer {kind[:40]!r} is not supported, {known}; import the Hugging Face folder")
    tokens, types = file.get("tokenizer.ggml.tokens", list), file.get("tokenizer.ggml.token_type", list)
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens) or not all(isinstance(text, str) for text in tokens):
        raise UserError(
            f"{where}: {len(types)} token types for {len(tokens)} tokens, {len(set(tokens))} of them different; convert it again"
        )
    inner = _byte_level(file, tokens, types) if kind == _BYTE_LEVEL else _sentencepiece(file, tokens, types)
    for what, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        inner.add_tokens([AddedToken(t, special=special, normalized=False) for t, k in zip(tokens, types, strict=True) if k == what])
    first = named_token(file, tokens, "bos")
    if first and file.get("tokenizer.ggml.add_bos_token", bool, kind == _SENTENCEPIECE):
        inner.post_processor = processors.TemplateProcessing(single=[first, "$A"], special_tokens=[(first, tokens.index(first))])
    return inner


def _bpe(file: GgufFile, tokens: list[str], types: list[int], merges: list[tuple[str, str]], **options: Any) -> tokenizers.Tokenizer:
    # Rows that only fill the table up have invented names; the original tokenizer does not know them.
    needed = {part for pair in merges for part in pair}
    vocab = {text: i for i, (text, what) in enumerate(zip(tokens, types, strict=True)) if what != _UNUSED or text in needed}
    try:
        return tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, **options))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file.folder}: the merges do not fit the tokens ({error}); convert the model again") from error


def _byte_level(file: GgufFile, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    kind = file.get("tokenizer.ggml.pre", str)
    if kind not in _KINDS:
        raise UserError(
            f"{file.folder}: pre-tokenizer {kind[:40]!r} is not supported, only {', '.join(_KINDS)}; import the Hugging Face folder"
        )
    merges = [(line[: line.find(" ", 1)], line[line.find(" ", 1) + 1 :]) for line in file.get("tokenizer.ggml.merges", list)]
    inner = _bpe(file, tokens, types, merges, ignore_merges=kind == "llama-bpe")
    if kind == "qwen2":
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = _pre_tokenizer(kind)
    inner.decoder = decoders.ByteLevel()
    return inner


def _sentencepiece(file: GgufFile, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """SentencePiece joins the two neighbours that make the piece with the highest score; so merges are ranked by the score of what they make.

    Bytes stand in for characters without a piece. As in llama.cpp, and in the tokenizer.json of Llama 2, a blank is put before the text and
    before what follows an added token.
    """
    scores = file.get("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens) or not all(isinstance(score, float) and math.isfinite(score) for score in scores):
        raise UserError(f"{file.folder}: {len(scores)} scores for {len(tokens)} tokens, or not all are finite; convert the model again")
    normal = {text: score for text, what, score in zip(tokens, types, scores, strict=True) if what == _NORMAL}
    pairs = [(-normal[text], text[:n], text[n:]) for text in normal for n in range(1, len(text))]
    merges = [(left, right) for _, left, right in sorted(pair for pair in pairs if pair[1] in normal and pair[2] in normal)]
    unknown = named_token(file, tokens, "unknown")
    inner = _bpe(file, tokens, types, merges, unk_token=unknown or None, fuse_unk=True, byte_fallback=_BYTE in types)
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    inner.normalizer = normalizers.Sequence([*[normalizers.Prepend("▁")] * prefix, normalizers.Replace(" ", "▁")])
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*back, *[decoders.Strip(" ", 1, 0)] * prefix])
    return inner


def named_id(file: GgufFile, name: str) -> int:
    """Id of the token that the metadata calls `name`, -1 where it names none."""
    default = _DEFAULTS.get(name, -1) if file.get("tokenizer.ggml.model", str) == _SENTENCEPIECE else -1
    return file.get(f"tokenizer.ggml.{name}_token_id", int, default)


def named_token(file: GgufFile, tokens: list[str], name: str) -> str:
    """Text of the token that the metadata calls `name`, "" where it names none. Errors: UserError for an id without a token."""
    i = named_id(file, name)
    if i >= len(tokens):
        raise UserError(f"{file.folder}: tokenizer.ggml.{name}_token_id is {i}, but there are {len(tokens)} tokens; convert it again")
    return tokens[i] if i >= 0 else ""


def write_folder(file: GgufFile, out: pathlib.Path) -> None:
    """config.json, tokenizer.json and tokenizer_config.json of a GGUF file, into the folder `out`. Errors: UserError."""
    inner = build_tokenizer(file)
    tokens = file.get("tokenizer.ggml.tokens", list)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {key: text for key, name in _NAMED.items() if (text := named_token(file, tokens, name))}
    if template := file.get("tokenizer.chat_template", str, ""):
        settings["chat_template"] = template
    ends = list(dict.fromkeys(i for i in (named_id(file, name) for name in _ENDS) if i >= 0))
    config = file.config() | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})
    for name, key in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if named_token(file, tokens, name):
            config[key] = named_id(file, name)
    inner.save(str(out / "tokenizer.json"))
    for name, value in (("config.json", config), ("tokenizer_config.json", settings)):
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
