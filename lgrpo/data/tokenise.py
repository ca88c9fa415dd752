"""A split's records as tokens: everything is tokenised once, and what is too long or cannot be trained on is left out here and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lgrpo.config import ExperimentConfig
from lgrpo.config.reads import end_ids
from lgrpo.data import prompts
from lgrpo.data.prompts import TextTokenizer
from lgrpo.data.ragged import Ragged
from lgrpo.data.registry import DATA_SETS, instruction_of, locate
from lgrpo.data.sources import Record, load_records
from lgrpo.errors import UserError
from lgrpo.runs import multihost

NO_CHAIN = "no chain"


@dataclasses.dataclass(frozen=True)
class Table:
    """Tokenised records that fit, in file order: M rows."""

    prompts: Ragged
    chains: Ragged  # no rows where they are not asked for; answers too
    answers: Ragged
    gold: list[str]
    uid: np.ndarray  # int32 [M]
    left_out: dict[str, int]  # records by reason; `all`: each once


@dataclasses.dataclass(frozen=True)
class _Part:
    """One text of every record, tokenised."""

    ids: Ragged
    sizes: np.ndarray  # int64 [M]; tokens, or the characters of a text that is so long that nobody counts its tokens
    limit: int
    field: str


def tokenise(cfg: ExperimentConfig, tokenizer: TextTokenizer, split: str, *, supervised: bool) -> Table:
    """Loads and tokenises a split, and leaves out what is too long or, where supervised, has no chain. Errors: UserError, see pipeline."""
    if cfg.data.think_end_id < 0 or cfg.data.eos_id < 0:
        raise ValueError("the config is not resolved; pass it through lgrpo.data.prompts.resolve first")
    records = load_records(cfg.data, split)
    _, ids, sizes = prompt_ids(cfg, tokenizer, split, records)
    parts = {"prompt": _known(tokenizer, records, _Part(ids, sizes, cfg.data.max_prompt, "data.max_prompt"))}
    bare = np.zeros(len(records), bool)
    if supervised:
        bare = _bare(cfg, split, records)
        parts |= _supervised_parts(cfg, tokenizer, split, records)
    keep = ~bare
    for what, part in parts.items():
        fits = part.sizes <= part.limit
        if cfg.data.overlong == "error" and not fits.all():
            uid = int(np.argmin(fits))
            unit = "tokens" if part.ids.sizes[uid] == part.sizes[uid] else "characters"
            raise UserError(
                f"data: {split} record {uid}: {what} has {part.sizes[uid]} {unit}, {part.field} is {part.limit}; "
                "raise it or set data.overlong=drop"
            )
        if what == "answer" and not fits.all():  # the target: what is left may be another task
            multihost.say(
                f"warning: data: {int((~fits).sum())} of {len(records)} {split} records left out: longer answer than {part.field}={part.limit}"
            )
        keep &= fits
    kept = np.flatnonzero(keep)
    if not len(kept):
        shortest = {what: int(part.sizes.min()) for what, part in parts.items()}
        limits = {part.field: part.limit for part in parts.values()}
        raise UserError(
            f"data: none of the {len(records)} {split} records fits {limits}; the shortest lengths are {shortest}; raise the limits"
        )

    def chosen(what: str) -> Ragged:
        return parts[what].ids.kept(keep) if what in parts else Ragged.of(())

    return Table(
        prompts=chosen("prompt"),
        chains=chosen("chain"),
        answers=chosen("answer"),
        gold=[records[i]["answer"] for i in kept],
        uid=np.array([records[i]["uid"] for i in kept], np.int32),
        left_out=_left_out(parts, bare),
    )


def _left_out(parts: dict[str, _Part], bare: np.ndarray) -> dict[str, int]:
    """How many records each limit keeps out (one that breaks several counts for each), how many have no chain, and how many there are in `all`."""
    over = {f"{part.field}={part.limit}": (part.sizes > part.limit) & ~bare for part in parts.values()}
    found = over | ({NO_CHAIN: bare} if bare.any() else {})
    return {why: int(which.sum()) for why, which in found.items()} | {"all": int(np.any(list(found.values()), axis=0).sum())}


def prompt_texts(cfg: ExperimentConfig, tokenizer: TextTokenizer, split: str, records: Sequence[Record]) -> list[str]:
    """The prompts of records of a split."""
    own = cfg.data.instruction
    asked = {"instruction": instruction_of(cfg.data.source, split) if own is None else own, "few_shot": prompts.load_examples(cfg.data)}
    problems = [r["problem"] for r in records]
    return prompts.render_prompts(problems, cfg.data.template, cfg.data.think_start, chat=tokenizer.chat, **asked)


def prompt_ids(
    cfg: ExperimentConfig, tokenizer: TextTokenizer, split: str, records: Sequence[Record]
) -> tuple[list[str], Ragged, np.ndarray]:
    """(texts, ids, sizes int64 [M]) of the prompts of a split; what `bounded_ids` says of long texts holds for problems."""
    # What is too long is not put into a template either.
    most = _most_characters(tokenizer, cfg.data.max_prompt)
    texts = prompt_texts(cfg, tokenizer, split, [r if len(r["problem"]) <= most else r | {"problem": ""} for r in records])
    ids, sizes = bounded_ids(tokenizer, texts, cfg.data.max_prompt)
    long = _lengths([r["problem"] for r in records])
    return texts, ids, np.where(long > most, long, sizes)


def _bare(cfg: ExperimentConfig, split: str, records: Sequence[Record]) -> np.ndarray:
    """bool [M]: records without a chain. Files of registered data sets are as they are; in one's own such a record is a mistake."""
    bare = np.array([not r["cot"].strip() for r in records])
    name, _ = locate(cfg.data.source, split)
    if bare.any() and name not in DATA_SETS:
        raise UserError(
            f"data: {int(bare.sum())} of {len(records)} records have no `cot` (the first: record {int(np.argmax(bare))}); "
            "supervised training needs a chain for every record, so add them or remove these records"
        )
    if bare.all():
        raise UserError(
            f"data: none of the {len(bare)} {split} records of {name} has a chain; supervised training needs a set that has them"
        )
    return bare


def answer_texts(cfg: ExperimentConfig, split: str, records: Sequence[Record]) -> list[str]:
    """What the targets say after the thinking, by sft.answer. Errors: UserError for records without the solution that it asks for."""
    prose = cfg.sft.answer == "solution"
    solutions = [r.get("solution", "") if prose else "" for r in records]
    if prose and not all(solutions):
        raise UserError(
            f"sft.answer=solution: {solutions.count('')} of {len(records)} {split} records have no text in `solution` "
            f"(the first: record {solutions.index('')}); add it, or use sft.answer=final"
        )
    return [prompts.render_answer(r["answer"], cfg.data.template, solution) for r, solution in zip(records, solutions, strict=True)]


def _supervised_parts(cfg: ExperimentConfig, tokenizer: TextTokenizer, split: str, records: Sequence[Record]) -> dict[str, _Part]:
    """Chains and answers. A control token inside them would end the thinking or the answer early."""
    chain_texts = [prompts.render_chain(r["cot"]) for r in records]
    chains = _tokens(tokenizer, chain_texts, records, cfg.sft.max_chain, "sft.max_chain")
    answers = _tokens(tokenizer, answer_texts(cfg, split, records), records, cfg.sft.max_answer, "sft.max_answer")
    controls = {cfg.data.think_end_id, *end_ids(cfg.data)}
    for part in (chains, answers):
        early = part.ids.holds(controls)
        if early.any():
            raise UserError(
                f"data: record {records[int(np.argmax(early))]['uid']}: chain or answer contains data.think_end or an end of sequence; "
                "remove it from the text"
            )
    head, tail = prompts.think_end_ids(cfg.data, tokenizer)[1:], [cfg.data.eos_id]
    ends = answers.ids.between(head, tail)
    return {"chain": chains, "answer": dataclasses.replace(answers, ids=ends, sizes=answers.sizes + len(head) + len(tail))}


def _most_characters(tokenizer: TextTokenizer, limit: int) -> int:
    """A text of more characters than this is too long for `limit` tokens, blanks aside that a tokenizer may drop."""
    return max(100_000, 4 * limit * tokenizer.longest)


def _lengths(texts: Sequence[str]) -> np.ndarray:
    """Characters, int64 [M]."""
    return np.fromiter(map(len, texts), np.int64, len(texts))


def bounded_ids(tokenizer: TextTokenizer, texts: Sequence[str], limit: int) -> tuple[Ragged, np.ndarray]:
    """(ids, sizes int64 [M]). A text with so many characters that it must be longer than `limit` tokens is not read: no ids, its size in characters."""
    most, long = _most_characters(tokenizer, limit), _lengths(texts)
    ids = tokenizer.encode_batch([text if len(text) <= most else "" for text in texts])
    return ids, np.where(long > most, long, ids.sizes)


def _tokens(tokenizer: TextTokenizer, texts: Sequence[str], records: Sequence[Record], limit: int, field: str) -> _Part:
    """Tokens of the texts, apart from those that are too long for that. Errors: as _known."""
    ids, sizes = bounded_ids(tokenizer, texts, limit)
    return _known(tokenizer, records, _Part(ids, sizes, limit, field))


def _known(tokenizer: TextTokenizer, records: Sequence[Record], part: _Part) -> _Part:
    """Errors: UserError when the tokenizer lacks a token for some of it: that part of the problem would be lost."""
    unk = tokenizer.find(prompts.UNK)
    if unk is not None:
        unknown = part.ids.holds([unk])
        if unknown.any():
            bad = int(np.argmax(unknown))
            shown = tokenizer.decode(part.ids[bad])[:200]
            raise UserError(
                f"data: record {records[bad]['uid']} has text unknown to the {tokenizer.name} tokenizer: {shown!r}; "
                "set data.tokenizer to one that covers it"
            )
    return part
