"""The tokenizer and the chat template of a GGUF file as the files of a Hugging Face folder.

Byte-level BPE only (`tokenizer.ggml.model` gpt2). How text is cut before the merges is not in the file but named in it; the kinds below are known.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from lgrpo.errors import UserError
from lgrpo.models.gguf_io import GgufFile

# How the tokenizers of Llama 3 and Qwen2 cut text; they differ in how many digits stay together.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_KINDS = ("smollm", "qwen2", "llama-bpe")
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # of tokenizer.ggml.token_type
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
    model = file.get("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise UserError(f"{where}: tokenizer {model[:40]!r} is not supported, only byte-level BPE (gpt2); import the Hugging Face folder")
    kind = file.get("tokenizer.ggml.pre", str)
    if kind not in _KINDS:
        raise UserError(f"{where}: pre-tokenizer {kind[:40]!r} is not supported, only {', '.join(_KINDS)}; import the Hugging Face folder")
    tokens, types = file.get("tokenizer.ggml.tokens", list), file.get("tokenizer.ggml.token_type", list)
    merges = [(line[: line.find(" ", 1)], line[line.find(" ", 1) + 1 :]) for line in file.get("tokenizer.ggml.merges", list)]
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise UserError(
            f"{where}: {len(types)} token types for {len(tokens)} tokens, {len(set(tokens))} of them different; convert it again"
        )
    # Rows that only fill the table up have invented names; the original tokenizer does not know them.
    needed = {part for pair in merges for part in pair}
    vocab = {text: i for i, (text, what) in enumerate(zip(tokens, types, strict=True)) if what != _UNUSED or text in needed}
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=kind == "llama-bpe"))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{where}: the merges do not fit the tokens ({error}); convert the model again") from error
    if kind == "qwen2":
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = _pre_tokenizer(kind)
    inner.decoder = decoders.ByteLevel()
    for what, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        inner.add_tokens([AddedToken(t, special=special, normalized=False) for t, k in zip(tokens, types, strict=True) if k == what])
    first = named_token(file, tokens, "bos")
    if first and file.get("tokenizer.ggml.add_bos_token", bool, False):
        inner.post_processor = processors.TemplateProcessing(single=[first, "$A"], special_tokens=[(first, vocab[first])])
    return inner


def named_token(file: GgufFile, tokens: list[str], name: str) -> str:
    """Text of the token that the metadata calls `name`, "" where it names none. Errors: UserError for an id without a token."""
    i = file.get(f"tokenizer.ggml.{name}_token_id", int, -1)
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
    ends = [file.get(f"tokenizer.ggml.{name}_token_id", int, -1) for name in _ENDS]
    ends = list(dict.fromkeys(i for i in ends if i >= 0))
    config = file.config() | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})
    for name, key in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if named_token(file, tokens, name):
            config[key] = file.get(f"tokenizer.ggml.{name}_token_id", int)
    inner.save(str(out / "tokenizer.json"))
    for name, value in (("config.json", config), ("tokenizer_config.json", settings)):
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
