"""One grader for training and evaluation."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from lgrpo.config import DataConfig, Grader
from lgrpo.rewards.answers import Reading, answer_text, changes_value, read_answer
from lgrpo.rewards.choice import chosen_letter, gold_letter
from lgrpo.rewards.math_pool import shared_pool
from lgrpo.rewards.official import official_answer, official_equal, strip_string

Category = Literal["correct", "wrong", "no_answer", "unparsable", "timeout", "crash"]
ERRORS: tuple[Category, ...] = ("wrong", "no_answer", "unparsable", "timeout", "crash")
TOLERANCE = Fraction(1, 10**6)
MAX_DEPTH = 24
"""LaTeX whose brackets nest deeper is not parsed: no answer of a benchmark comes near, and the parser's time explodes."""

# LaTeX in the answer to a numeric question: a command (other than \text and its like) or a power. Bare arithmetic (12-5, 9**9) is an exercise, not an answer.
_COMMAND = re.compile(r"\\(?!text|mathrm|mathbf|mbox)[a-zA-Z]|\^|√|π")
_NAME = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]")
# Mathematics in a gold answer that is no number: anything that more than one spelling may stand for.
_MATH = re.compile(r"\\[a-zA-Z]|[\d^_+\-*/=<>(\[|√π∞]")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """correct: the answer equals the gold answer. category says why not: wrong (read, but different), no_answer (nothing to read),
    unparsable (the gold answer is a number, a formula or a choice, and the completion's answer is none), timeout and crash (of the LaTeX
    parser). key: the answer in normal form, under which votes are counted; None where there is no answer."""

    correct: bool
    category: Category
    key: str | None = None


_read_gold = functools.lru_cache(maxsize=65_536)(read_answer)  # gold answers come back every epoch and for every sample of a group


def grade(text: str | None, gold: str, grader: Grader = "auto") -> Verdict:
    """Verdict on one text after thinking (None: there was none) with the default limits; see grade_all. Never raises for any text."""
    return grade_all([text], [gold], DataConfig(grader=grader))[0]


def grade_all(texts: Sequence[str | None], golds: Sequence[str], cfg: DataConfig) -> list[Verdict]:
    """Verdicts on texts after thinking against the gold answers, row by row. Linear time; never raises for any text.

    cfg.grader: `auto` (a choice where the gold answer is a letter A-D, else as math), `numeric` (numbers, else equal text), `math` (numbers and
    equal text first; LaTeX that these leave open goes to worker processes, each answer for at most cfg.grader_seconds), `choice`, `official`.
    Errors: UserError when the worker processes cannot be started.
    """
    verdicts: list[Verdict] = []
    open_rows: list[tuple[int, tuple[str, str]]] = []
    for row, (text, gold) in enumerate(zip(texts, golds, strict=True)):
        verdict, pair = _decide(text, gold, cfg.grader)
        verdicts.append(verdict)
        if pair is not None:
            open_rows.append((row, pair))
    if open_rows:
        outcomes = shared_pool(cfg.grader_workers, cfg.grader_seconds).judge([pair for _, pair in open_rows])
        for (row, _), outcome in zip(open_rows, outcomes, strict=True):
            verdicts[row] = Verdict(outcome == "correct", outcome, verdicts[row].key)
    return verdicts


def _decide(text: str | None, gold: str, grader: Grader) -> tuple[Verdict, tuple[str, str] | None]:
    """The verdict without a LaTeX parser; and, where only that can tell, the pair (gold, answer) for it."""
    if not text or not text.strip():
        return Verdict(False, "no_answer"), None
    if grader == "official":
        return _official(text, gold), None
    if grader == "choice" or (grader == "auto" and len(gold) < 32 and gold_letter(gold)):
        return _choice(text, gold), None
    answer = answer_text(text)
    if answer is None:
        return Verdict(False, "no_answer"), None
    found, wanted = read_answer(answer), _read_gold(gold)
    if not found.text and found.number is None:
        return Verdict(False, "no_answer"), None
    key = str(found.number) if found.number is not None else found.text
    if _equal(found, wanted):
        return Verdict(True, "correct", key), None
    pair = _for_parser(found, wanted) if grader != "numeric" else None
    return Verdict(False, "unparsable" if found.number is None and wanted.number is not None else "wrong", key), pair


def _equal(found: Reading, wanted: Reading) -> bool:
    """Integers take nothing but themselves; where neither side is one, within a relative TOLERANCE. 50% is 50 and 0.5. Text must be the same."""
    a, b = found.number, wanted.number
    if a is None or b is None:
        return a is b and found.text == wanted.text and found.percent == wanted.percent
    if found.percent != wanted.percent and _close(a / (100 if found.percent else 1), b / (100 if wanted.percent else 1)):
        return True
    return _close(a, b)


def _close(a: Fraction, b: Fraction) -> bool:
    if a.denominator == 1 or b.denominator == 1:
        return a == b
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def _for_parser(found: Reading, wanted: Reading) -> tuple[str, str] | None:
    """The pair that the LaTeX parser shall compare, or None where the fast reading has the last word."""
    if not found.latex or not wanted.latex or (found.number is not None and wanted.number is not None):
        return None
    if wanted.number is not None:
        if not _COMMAND.search(found.latex) or changes_value(found.latex):  # math-verify would drop the words
            return None
    elif (
        _differ_in_case(found.latex, wanted.latex)
        or not _MATH.search(wanted.latex)
        or found.percent != wanted.percent
        or changes_value(found.latex)
        or changes_value(wanted.latex)
    ):  # the parser folds it
        return None
    return (wanted.latex, found.latex) if max(_depth(found.latex), _depth(wanted.latex)) <= MAX_DEPTH else None


def _differ_in_case(a: str, b: str) -> bool:
    """Formulas that are equal but for the case of their letters: R - r and r - R, \\Delta and \\delta."""
    if a.casefold() == b.casefold():
        return a != b
    names, others = (set(_NAME.findall(x)) for x in (a, b))
    return names != others and {x.casefold() for x in names} == {x.casefold() for x in others}


def _depth(latex: str) -> int:
    """Deepest nesting of opening brackets."""
    depth = deepest = 0
    for char in latex:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    return deepest


def _choice(text: str, gold: str) -> Verdict:
    letter, wanted = chosen_letter(text), gold_letter(gold)
    if letter is None:
        return Verdict(False, "no_answer" if answer_text(text) is None else "unparsable")
    return Verdict(letter == wanted, "correct" if letter == wanted else "wrong", letter)


def _official(text: str, gold: str) -> Verdict:
    answer = official_answer(text)
    if answer is None:
        return Verdict(False, "no_answer")
    correct = official_equal(answer, gold)
    return Verdict(correct, "correct" if correct else "wrong", strip_string(answer[:256]))
