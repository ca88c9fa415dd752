"""Tokens that are added to, or taken from, the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import tokenizers

from lgrpo.config import DataConfig
from lgrpo.data.prompts import UNK, TextTokenizer, load_tokenizer
from lgrpo.errors import UserError
from lgrpo.models.hf_io import read_json


def write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def content(token: Any) -> Any:
    """Text of a token that is given as text or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def ids_beyond(folder: pathlib.Path, rows: int, where: str) -> dict[str, int]:
    """Tokens of a folder's tokenizer whose id is `rows` or more. Errors: UserError when there is no fast tokenizer."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{where}: has no tokenizer.json; save the model's fast tokenizer (`save_pretrained`) beside the weights")
    vocab = load_tokenizer(DataConfig(tokenizer=str(file))).inner.get_vocab(with_added_tokens=True)
    return {text: i for text, i in sorted(vocab.items(), key=lambda item: item[1]) if i >= rows}


def drop_tokens(folder: pathlib.Path, dropped: dict[str, int]) -> None:
    """Removes added tokens {text: id} from every file that a tokenizer loader would take them from."""

    def edit(name: str, change: Any) -> None:
        if (folder / name).is_file():
            write_json(folder / name, change(read_json(folder / name)))

    def fast(raw: dict[str, Any]) -> dict[str, Any]:
        return raw | {"added_tokens": [token for token in raw.get("added_tokens", []) if token["content"] not in dropped]}

    def config(raw: dict[str, Any]) -> dict[str, Any]:
        ids = {str(i) for i in dropped.values()}
        decoder = {i: token for i, token in (raw.get("added_tokens_decoder") or {}).items() if i not in ids}
        extra = [token for token in raw.get("additional_special_tokens") or [] if content(token) not in dropped]
        named = {k: v for k, v in raw.items() if not (k.endswith("_token") and content(v) in dropped)}
        new = {"added_tokens_decoder": decoder, "additional_special_tokens": extra}
        return named | {key: value for key, value in new.items() if key in raw}

    edit("tokenizer.json", fast)
    edit("tokenizer_config.json", config)
    edit("special_tokens_map.json", config)
    edit("added_tokens.json", lambda raw: {text: i for text, i in raw.items() if text not in dropped})


def pieces_of(tokenizer: TextTokenizer, texts: Sequence[str]) -> dict[str, list[int]]:
    """How the tokenizer spells each text that is no token of it yet: ids, [] where it cannot. Errors: UserError for what cannot be a token."""
    found = {}
    for text in texts:
        if not text.strip() or text != text.strip() or not text.isprintable():
            raise UserError(f"--add-tokens {text!r}: give printable text without blanks around it")
        if tokenizer.find(text) is None:
            ids = tokenizer.encode(text)
            found[text] = [] if tokenizer.find(UNK) in ids else ids
    return found


def add_tokens(folder: pathlib.Path, texts: Sequence[str]) -> None:
    """Adds tokens to the tokenizer files of a folder. They are no special tokens: a decoder that leaves those out keeps them.

    Errors: UserError when an id that the tokenizer would take is in use.
    """
    file = folder / "tokenizer.json"
    inner = tokenizers.Tokenizer.from_file(str(file))
    taken = inner.get_vocab(with_added_tokens=True)
    inner.add_tokens([tokenizers.AddedToken(text, normalized=False, special=False) for text in texts])
    ids = {text: inner.token_to_id(text) for text in texts}
    if clash := set(ids.values()) & set(taken.values()):
        raise UserError(f"{file}: id {min(clash)} is in use, so that no token can be added; its ids have gaps: save the tokenizer again")
    inner.save(str(file))
    config = folder / "tokenizer_config.json"
    raw = read_json(config) if config.is_file() else {}
    if isinstance(raw.get("added_tokens_decoder"), dict):
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)
        raw["added_tokens_decoder"] |= {str(i): {"content": text} | flags for text, i in ids.items()}
        write_json(config, raw)
