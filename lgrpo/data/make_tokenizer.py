"""Writes the embedded tokenizer from the vocabulary of the embedded task: `python -m lgrpo.data.make_tokenizer`.

Word level: every word, sign and integer 0..99 is a token. Ids follow the order of the tables, so a new word shifts ids and old checkpoints
no longer fit; a test compares the committed file with what this module builds.
"""

from __future__ import annotations

import json
import pathlib
import re

import tokenizers
from tokenizers import models, pre_tokenizers

from lgrpo.config import DataConfig
from lgrpo.data import prompts, word_problems

# The last alternative makes every other character a piece of its own, so that it becomes <unk> instead of vanishing.
PIECES = r"<<|>>|####|\\boxed|[0-9]+|[A-Za-z]+|\S"
SIGNS = ("<<", ">>", "####", "\\boxed", "{", "}", "+", "-", "*", "/", "=", ".", ",", "?")


def vocabulary() -> list[str]:
    """Every token, in id order: special tokens, numbers, signs, words in alphabetical order."""
    special = [prompts.PAD, DataConfig.eos, prompts.UNK, DataConfig.think_start, DataConfig.think_end]
    names = [name for group in word_problems.PEOPLE.values() for name in group]
    nouns = [noun for one, many, _ in word_problems.OBJECTS for noun in (one, many)]
    texts = [re.sub(r"\{\w\}", " ", pattern) for pattern in word_problems.all_patterns()] + [prompts.INSTRUCTION]
    words = {piece for text in texts for piece in re.findall(r"[A-Za-z]+", text.replace("\\boxed", ""))}
    words |= {*names, *nouns, *word_problems.PEOPLE}
    return [*special, *(str(n) for n in range(100)), *SIGNS, *sorted(words)]


def build() -> tokenizers.Tokenizer:
    """The tokenizer, in memory."""
    tokens = vocabulary()
    tokenizer = tokenizers.Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=prompts.UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(PIECES), behavior="removed", invert=True)
    tokenizer.add_special_tokens(tokens[:5])
    return tokenizer


def render() -> str:
    """Content of the committed file."""
    return json.dumps(json.loads(build().to_str()), indent=1, ensure_ascii=False) + "\n"


def main(path: pathlib.Path = prompts.ASSET) -> None:
    """Writes the file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(render(), encoding="utf-8")
    print(f"{path}: {len(vocabulary())} tokens")


if __name__ == "__main__":
    main()
