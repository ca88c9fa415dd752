"""Multiple choice: the letter that a completion or a gold answer names. An article is never a letter."""

from __future__ import annotations

import re

from lgrpo.rewards.answers import MAX_TEXT, last_boxed

LETTERS = "ABCD"
_WRAP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|textit|mathsf)\s*\{([^{}]*)\}")
# The whole of an answer: B, (B), B., **B**, (B) Mitochondria, B: Mitochondria. Not `B Mitochondria`, nor `A cat`.
_ALONE = re.compile(rf"(?:option|choice)?\s*\(?\s*([{LETTERS}])\s*\)?[.:]?", re.IGNORECASE)
_LABELLED = re.compile(rf"(?:\(([{LETTERS}])\)|([{LETTERS}])[).:])\s*\S.*", re.DOTALL)
# Capitals only: `the answer is a ...` goes on with an article. Two letters joined by a word name no choice.
_SAID = re.compile(
    rf"(?i:answer|choice|option)(?i:\s+is)?\s*:?\s*[*_$\s]*\(?([{LETTERS}])\b\)?(?![a-z'’])(?!\s*(?:or|and|/|,)\s*\(?[{LETTERS}]\b)"
)
_BRACKETED = re.compile(rf"\(([{LETTERS}])\)")


def gold_letter(gold: str) -> str | None:
    """The letter of a gold answer: `B`, `(B)`, `\\text{(B)}`, in capitals; None for anything else."""
    match = re.fullmatch(rf"\(?\s*([{LETTERS}])\s*\)?", _unwrapped(gold))
    return match[1] if match else None


def chosen_letter(text: str) -> str | None:
    """The letter that a completion settles on, or None. Reads the last MAX_TEXT characters, in linear time.

    In this order: the last balanced \\boxed{...}; the line after the last ####; the last `answer is B`, `Answer: (B)`, `option B`; a last line
    that holds nothing else; the last letter in brackets.
    """
    text = text.rstrip()[-MAX_TEXT:]
    boxed = last_boxed(text)
    if boxed is not None:
        return _letter(boxed)
    at = text.rfind("####")
    if at >= 0:
        return _letter(text[at + 4 :].strip(" \t").partition("\n")[0])
    if said := _SAID.findall(text):
        return said[-1]
    if alone := _letter(text.rpartition("\n")[2]):
        return alone
    bracketed = _BRACKETED.findall(text)
    return bracketed[-1] if bracketed else None


def _letter(answer: str) -> str | None:
    """The letter of an answer that is nothing but a choice, with or without its text."""
    answer = _unwrapped(answer)
    match = _ALONE.fullmatch(answer)
    if match:
        return match[1].upper()
    match = _LABELLED.fullmatch(answer)
    return (match[1] or match[2]) if match else None


def _unwrapped(answer: str) -> str:
    """Without \\text{...} around it, emphasis and dollars. Looks at 256 characters: a choice stands at the front."""
    return _WRAP.sub(r"\1", answer[:256]).strip(" \t\n*_$")
