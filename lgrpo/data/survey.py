"""A file of problems before anything is trained on it: its columns, its lengths under the tokenizer, what would be left out, and how it is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lgrpo.config import ExperimentConfig
from lgrpo.data import prompts
from lgrpo.data.prompts import TextTokenizer
from lgrpo.data.sources import Record, load_records
from lgrpo.data.tokenise import answer_texts, bounded_ids, prompt_ids
from lgrpo.runs import storage
from lgrpo.runs.storage import Place

READ = ("problem", "cot", "answer")
PROSE = "solution"
PERCENTILES = (0, 50, 90, 99, 100)


def columns(file: Place) -> Counter[str]:
    """How many records have something in each column, in the order in which they appear."""
    found: Counter[str] = Counter()
    for line in storage.text_of(file).split("\n"):
        if line.strip():
            found.update({name: int(value not in (None, "")) for name, value in json.loads(line).items()})
    return found


def _lengths(
    cfg: ExperimentConfig, tokenizer: TextTokenizer, prompt_sizes: np.ndarray, records: Sequence[Record], answers: Sequence[str]
) -> dict[str, tuple[str, int, np.ndarray]]:
    """What is measured -> (name of its limit, limit, tokens of each record; the characters of what is far above its limit)."""
    # With the end of sequence in place of the first, which is no part of the answer.
    around = len(prompts.think_end_ids(cfg.data, tokenizer))
    chains = [prompts.render_chain(r["cot"]) for r in records]
    return {
        "prompt": ("data.max_prompt", cfg.data.max_prompt, prompt_sizes),
        "chain": ("sft.max_chain", cfg.sft.max_chain, bounded_ids(tokenizer, chains, cfg.sft.max_chain)[1]),
        "answer": ("sft.max_answer", cfg.sft.max_answer, bounded_ids(tokenizer, answers, cfg.sft.max_answer)[1] + around),
    }


def _table(rows: Sequence[Sequence[object]]) -> str:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(str(x).rjust(w) if i else str(x).ljust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )


def _example(cfg: ExperimentConfig, record: Record, prompt: str, answer: str) -> str:
    """A prompt, its target and the gold answer, as text with its line breaks."""
    target = f"{prompts.render_chain(record['cot'])}{cfg.data.think_end}{answer}{cfg.data.eos}"
    shown = target if record["cot"].strip() else "none for supervised training: no `cot`"
    return f"-- record {record['uid']}\nprompt: {prompt}\ntarget: {shown}\ngold answer: {record['answer']}"


def survey(cfg: ExperimentConfig, tokenizer: TextTokenizer, file: Place, *, show: int = 5) -> str:
    """Text about a JSONL file. cfg: resolved, with this file as its source. Errors: UserError for a record that cannot be read."""
    split = file.stem
    records = load_records(cfg.data, split)
    seen = columns(file)
    named = ", ".join(f"{name} ({count})" for name, count in seen.items())
    ignored = [name for name in seen if name not in READ and (name != PROSE or cfg.sft.answer == "final")]
    answers = answer_texts(cfg, split, records)
    texts, ids, sizes = prompt_ids(cfg, tokenizer, split, records)
    lengths = _lengths(cfg, tokenizer, sizes, records, answers)
    bare = np.array([not r["cot"].strip() for r in records])
    rows = [["tokens", *(f"{p} %" if 0 < p < 100 else "least" if not p else "most" for p in PERCENTILES), "limit", "longer", ""]]
    for what, (field, limit, found) in lengths.items():
        some = found[~bare] if what == "chain" else found
        numbers = np.percentile(some, PERCENTILES, method="higher").astype(int).tolist() if len(some) else ["-"] * len(PERCENTILES)
        rows.append([what, *numbers, limit, int((some > limit).sum()), field])
    long = {what: found > limit for what, (_, limit, found) in lengths.items()}
    supervised = long["prompt"] | long["chain"] | long["answer"]
    unknown = tokenizer.find(prompts.UNK)
    lost = [] if unknown is None else np.flatnonzero(ids.holds([unknown])).tolist()
    parts = [
        f"{file}: {len(records)} records; columns with something in them: {named}"
        + (f"; not read: {', '.join(ignored)}" if ignored else ""),
        f"tokenizer {tokenizer.name}, template {cfg.data.template}; an answer counts its end of sequence\n" + _table(rows),
        f"left out: {int(long['prompt'].sum())} by train and eval (prompt too long), {int(supervised.sum())} by sft (anything too long)",
    ]
    if bare.any():
        parts.append(f"{int(bare.sum())} records have no `cot`: sft refuses the file, train and eval read it")
    if lost:
        parts.append(f"{len(lost)} records have text that the tokenizer does not know (the first: record {lost[0]}): they are refused")
    parts += [_example(cfg, *shown) for shown in list(zip(records, texts, answers, strict=True))[:show]]
    return "\n\n".join(parts)
