"""Text to tokens: the tokenizer, the templates, and what the config takes from them."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import tokenizers

from lgrpo.config import DataConfig, ExperimentConfig
from lgrpo.config.machine import settle_dtype
from lgrpo.data.chat import ChatTemplate, load_chat_template
from lgrpo.data.files import digest
from lgrpo.data.ragged import Ragged
from lgrpo.data.registry import INSTRUCTION
from lgrpo.errors import UserError
from lgrpo.runs import storage

ASSET = pathlib.Path(__file__).parent / "assets" / "tokenizer.json"
UNK = "<unk>"
PAD = "<pad>"
_GAP = re.compile(r">>\s+<<")
_PART = 4096  # texts


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """What the project needs of a `tokenizers.Tokenizer`. Encoding adds nothing: ids are those of the text alone."""

    inner: tokenizers.Tokenizer
    name: str
    """Where it came from, for messages."""
    chat: ChatTemplate | None = None
    """Template of its checkpoint, when data.template is chat."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def vocabulary(self) -> str:
        """Identity of the map from tokens to ids, which is what weights are trained on: a checkpoint keeps it."""
        entries = sorted(self.inner.get_vocab(with_added_tokens=True).items())
        return digest(json.dumps(entries).encode())

    @functools.cached_property
    def longest(self) -> int:
        """Characters of the longest vocabulary entry."""
        return max(map(len, self.inner.get_vocab(with_added_tokens=True)))

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        """Ids of each text. The library's threads share the texts of a part; an encoding is some kB, so the parts are bounded."""
        parts = (list(texts[at : at + _PART]) for at in range(0, len(texts), _PART))
        return Ragged.joined(Ragged.of([e.ids for e in self.inner.encode_batch_fast(part, add_special_tokens=False)]) for part in parts)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens included. Ids outside the vocabulary have no text."""
        return self.inner.decode(list(ids), skip_special_tokens=False)

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.inner.decode_batch([list(row) for row in rows], skip_special_tokens=False)

    def id_of(self, text: str) -> int:
        """Id of one vocabulary entry. Errors: UserError when there is none."""
        found = self.inner.token_to_id(text)
        if found is None:
            raise UserError(f"data.tokenizer: {self.name} has no token {text!r}; choose one that it has")
        return found

    def token_of(self, token_id: int) -> str:
        """Vocabulary entry of an id; empty when there is none."""
        return self.inner.id_to_token(int(token_id)) or ""

    def find(self, text: str) -> int | None:
        """As id_of, but None when the token does not exist."""
        return self.inner.token_to_id(text)


def load_tokenizer(data_cfg: DataConfig) -> TextTokenizer:
    """The embedded tokenizer, a tokenizer.json, or the one in a folder. Errors: UserError when the file is missing or broken."""
    name = data_cfg.tokenizer
    path = ASSET if name == "embedded" else storage.local(name)
    if path.is_dir():
        path = path / "tokenizer.json"
    where = name if storage.remote(name) else str(path)
    if not path.is_file():
        raise UserError(f"data.tokenizer: {where} does not exist; give 'embedded', a tokenizer.json or a folder that holds one")
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"data.tokenizer: {where} is not a tokenizer file ({error}); save it again with `tokenizers`") from error
    inner.no_padding()  # some files carry both settings; here they would change lengths silently
    inner.no_truncation()
    chat = load_chat_template(path.parent) if data_cfg.template == "chat" else None
    return TextTokenizer(inner, name="embedded" if name == "embedded" else where, chat=chat)


def render_prompts(
    problems: Sequence[str],
    template: str,
    think_start: str = DataConfig.think_start,
    *,
    chat: ChatTemplate | None = None,
    instruction: str = INSTRUCTION,
    few_shot: str = "",
) -> list[str]:
    """Prompt texts, up to and including the opening of thinking (empty: no thinking is opened). template: see DataConfig; chat: the
    tokenizer's, for template=chat; few_shot: text of worked examples, see with_examples.

    A chat template may open the thinking itself (`<think>`, with blanks after it); then nothing is appended.
    """
    problems = [with_examples(problem, few_shot) for problem in problems]
    asked = [f"{instruction}\n{problem}" if instruction else problem for problem in problems]
    if template == "plain":
        return [f"{problem}{think_start}" for problem in problems]
    if template == "instruct":
        return [f"{text}{think_start}" for text in asked]
    if template != "chat":
        raise UserError(f"data.template: {template!r} is unknown; choose plain, instruct or chat")
    if chat is None:
        raise UserError("data.template: chat, but the tokenizer was loaded without its chat template; load it with this config")
    opened = think_start.rstrip()
    return [text if text.rstrip().endswith(opened) else text + think_start for text in chat.render(asked)]


def render_prompt(problem: str, template: str, think_start: str = DataConfig.think_start, **options: Any) -> str:
    """One of render_prompts."""
    return render_prompts([problem], template, think_start, **options)[0]


def with_examples(problem: str, examples: str) -> str:
    """The problem where `{problem}` stands in the examples, else after them."""
    return examples.replace("{problem}", problem) if "{problem}" in examples else examples + problem


def load_examples(data_cfg: DataConfig) -> str:
    """Text of data.few_shot, "" where there is none. Errors: UserError when it cannot be read."""
    if not data_cfg.few_shot:
        return ""
    try:
        return storage.text_of(storage.place(data_cfg.few_shot))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.few_shot: {data_cfg.few_shot} cannot be read ({error}); give a text file in UTF-8") from error


def render_chain(cot: str) -> str:
    """Chain text without the blanks between equations, which would cost a token each: `<<1+2=3>><<3+4=7>>`."""
    return _GAP.sub(">><<", cot.strip())


def render_answer(answer: str, template: str, solution: str = "") -> str:
    """Answer text in the form that the grader looks for, after a solution in prose where there is one."""
    before = f"{solution}\n" if solution else ""
    if template == "plain":
        return f"{before}#### {answer}"
    if template in ("instruct", "chat"):
        return f"{before}\\boxed{{{answer}}}"
    raise UserError(f"data.template: {template!r} is unknown; choose plain, instruct or chat")


def think_end_ids(data_cfg: DataConfig, tokenizer: TextTokenizer) -> list[int]:
    """Ids of the end-of-thinking text. The first one is think_end_id; where there are more, the others open the answer.

    Errors: UserError when the tokenizer has no way to write it.
    """
    ids = tokenizer.encode(data_cfg.think_end)
    if not ids or tokenizer.find(UNK) in ids:
        raise UserError(f"data.think_end: {tokenizer.name} cannot encode {data_cfg.think_end!r}; choose a text that it can")
    return ids


def pad_id(data_cfg: DataConfig, tokenizer: TextTokenizer) -> int:
    """Id that fills masked positions: the padding token, or the end of sequence where there is none."""
    found = tokenizer.find(PAD)
    return tokenizer.id_of(data_cfg.eos) if found is None else found


def resolve(cfg: ExperimentConfig, tokenizer: TextTokenizer) -> ExperimentConfig:
    """The config with everything that depends on the tokenizer filled in: model.vocab_size, data.think_end_id, data.eos_id,
    data.more_eos_ids; and model.dtype=auto, by the machine.

    think_end_id is the first id of the text data.think_end: checkpoints without that token spell it in several (`</`, `think`, `>`).
    Errors: UserError for a value that disagrees with the tokenizer or for a model with fewer rows than the tokenizer has ids.
    """
    cfg, _ = settle_dtype(cfg)
    size = tokenizer.vocab_size
    vocab_size = cfg.model.vocab_size or size
    if vocab_size < size:
        raise UserError(
            f"model.vocab_size: {vocab_size} rows for the {size} ids of {tokenizer.name}; set it to the rows of the weights that it starts from, "
            f"which imported() of lgrpo.config.imported reads, or to 0 for {size} rows"
        )
    think_end = _agreed("data.think_end_id", cfg.data.think_end_id, think_end_ids(cfg.data, tokenizer)[0], cfg.data.think_end, vocab_size)
    eos = _agreed("data.eos_id", cfg.data.eos_id, tokenizer.id_of(cfg.data.eos), cfg.data.eos, vocab_size)
    more = tuple(tokenizer.id_of(text) for text in cfg.data.more_eos)
    if cfg.data.more_eos_ids not in ((), more):
        raise UserError(
            f"data.more_eos_ids: {cfg.data.more_eos_ids}, but the tokenizer has {more} for {cfg.data.more_eos}; leave the ids out"
        )
    if think_end in more:
        raise UserError(f"data.more_eos: {tokenizer.token_of(think_end)!r} ends the thinking; leave it out")
    if think_end == eos:
        raise UserError(f"data.think_end: {cfg.data.think_end!r} and data.eos {cfg.data.eos!r} are both token {eos}; choose two texts")
    return dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, vocab_size=vocab_size),
        data=dataclasses.replace(cfg.data, think_end_id=think_end, eos_id=eos, more_eos_ids=more),
    )


def _agreed(field: str, configured: int, found: int, text: str, vocab_size: int) -> int:
    """The id found, if the configured one does not contradict it."""
    if configured != -1 and not 0 <= configured < vocab_size:
        raise UserError(f"{field}: {configured} is outside the vocabulary of {vocab_size}; set it to -1")
    if configured not in (-1, found):
        raise UserError(f"{field}: {configured}, but the tokenizer writes {text!r} with {found}; set it to -1 or {found}")
    return found


def describe_think_tokens(cfg: ExperimentConfig, tokenizer: TextTokenizer) -> str:
    """Ids and vocabulary entries of the control texts, for the log at start-up. cfg must be resolved."""
    end = think_end_ids(cfg.data, tokenizer)
    named = [
        ("think_start", cfg.data.think_start, tokenizer.encode(cfg.data.think_start)),
        ("eos", cfg.data.eos, [cfg.data.eos_id]),
        *(("more_eos", text, [i]) for text, i in zip(cfg.data.more_eos, cfg.data.more_eos_ids, strict=True)),
        ("think_end", cfg.data.think_end, end),
    ]
    lines = [f"{name} {text!r}: " + " ".join(f"{tokenizer.token_of(i)}|{i}" for i in ids) for name, text, ids in named]
    rest = "" if len(end) == 1 else f"; thinking ends with its first token, {tokenizer.token_of(end[0])!r} = {cfg.data.think_end_id}"
    return "\n".join(lines) + rest


def describe_prompt(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """The prompt's text and, token by token, its ids: for the log, so that a wrong template is seen before it is trained on."""
    pieces = " ".join(f"{tokenizer.token_of(i)}|{int(i)}" for i in ids)
    return f"{tokenizer.decode([int(i) for i in ids])}\n[{len(ids)} tokens] {pieces}"
