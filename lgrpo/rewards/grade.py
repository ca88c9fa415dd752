"""One grader for training and evaluation."""

from __future__ import annotations

import dataclasses
import functools
from fractions import Fraction
from typing import Literal

from lgrpo.rewards.answers import Reading, answer_text, read_answer

Category = Literal["correct", "wrong", "no_answer", "unparsable"]
ERRORS: tuple[Category, ...] = ("wrong", "no_answer", "unparsable")
TOLERANCE = Fraction(1, 10**6)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """correct: the answer equals the gold answer. category says why not: wrong (read, but different), no_answer (nothing to read),
    unparsable (the gold answer is a number and the completion's answer is not)."""

    correct: bool
    category: Category


_read_gold = functools.lru_cache(maxsize=65_536)(read_answer)  # gold answers come back every epoch and for every sample of a group


def grade(text: str | None, gold: str) -> Verdict:
    """Judges the text after thinking (None: there was none) against the gold answer. Linear time; never raises for any text."""
    answer = answer_text(text) if text else None
    if answer is None:
        return Verdict(False, "no_answer")
    found, wanted = read_answer(answer), _read_gold(gold)
    if not found.text:
        return Verdict(False, "no_answer")
    if _equal(found, wanted):
        return Verdict(True, "correct")
    return Verdict(False, "unparsable" if found.number is None and wanted.number is not None else "wrong")


def _equal(found: Reading, wanted: Reading) -> bool:
    """Integers must agree exactly; where one side has decimals, within a relative TOLERANCE. Text must be the same in normal form."""
    a, b = found.number, wanted.number
    if a is None or b is None:
        return a is b and found.text == wanted.text
    if a.denominator == 1 and b.denominator == 1:
        return a == b
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))
