"""Hugging Face folders for the tests: the committed tiny models with a tokenizer that fits their 96 rows."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"


def write_tokenizer(folder: pathlib.Path, *extra: str, size: int = 96) -> None:
    """A word-level tokenizer of `size` entries (numbers fill it up); `extra` are added tokens after them."""
    words = ["<unk>", "<eos>", "<pad>", "<think>", "</think>", "user", "assistant", ":"]
    vocab = {text: i for i, text in enumerate([*words, *(str(n) for n in range(size - len(words)))])}
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens([*words[:5], *extra])
    inner.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "chat_template": TEMPLATE}
    config["added_tokens_decoder"] = {str(size + i): {"content": text} for i, text in enumerate(extra)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def golden_folder(folder: pathlib.Path, name: str, *extra: str) -> pathlib.Path:
    """A copy of a golden model with a tokenizer, in a new folder."""
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name / file, folder / file)
    write_tokenizer(folder, *extra)
    return folder


@pytest.fixture(scope="module")
def hf_source(tmp_path_factory):
    """One golden model for a whole file of tests; nobody changes it."""
    return golden_folder(tmp_path_factory.mktemp("source") / "hf_llama", "hf_llama")


@pytest.fixture
def hf_folder(tmp_path):
    """Factory: a copy of a golden model with a tokenizer. changes: fields of config.json."""

    def make(name: str = "hf_llama", *extra: str, **changes) -> pathlib.Path:
        folder = golden_folder(tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}", name, *extra)
        if changes:
            raw = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(raw | changes))
        return folder

    return make
