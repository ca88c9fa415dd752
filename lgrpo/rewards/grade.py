"""One grader for training and evaluation."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from lgrpo.config import DataConfig, Grader
from lgrpo.rewards.answers import answer_text
from lgrpo.rewards.choice import chosen_letter, gold_letter, labelled_letter
from lgrpo.rewards.notation import depths
from lgrpo.rewards.official import official_answer, official_equal, strip_string
from lgrpo.rewards.reading import APPROX, VARIABLE, Reading, read_answer
from lgrpo.rewards.units import DEGREE, PERCENT, clash
from lgrpo.rewards.workers import shared_pool

Category = Literal["correct", "wrong", "no_answer", "unparsable", "timeout", "crash"]
ERRORS: tuple[Category, ...] = ("wrong", "no_answer", "unparsable", "timeout", "crash")
TOLERANCE = Fraction(1, 10**6)
MAX_DEPTH = 24
"""LaTeX whose brackets nest deeper is not parsed: no answer of a benchmark comes near, and the parser's time explodes."""

# What makes an answer to a numeric question more than an exercise: bare arithmetic (12-5, 9**9) and letters are refused.
_COMMAND = re.compile(r"\\(?!text|approx)[a-zA-Z]|\^|\||[0-9)]!")
_NAME = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]")
_CAPITAL = re.compile(r"\\[A-Z][a-z]+|(?<![A-Za-z])I(?![A-Za-z])")  # math-verify takes \Gamma for \gamma, and I for i
_WORD = re.compile(r"\\text\{([^{}]*)\}|(?<![\\A-Za-z])([A-Za-z]{4,})")
# A gold answer of a few letters is a product, a longer one a word.
_MATH = re.compile(r"\\[a-zA-Z]|[\d^_+\-*/=<>(\[|,]|^[a-zA-Z]{1,3}$")


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
    text = text or ""
    if grader == "official":
        return _official(text, gold), None
    letter = gold_letter(gold) if len(gold) < 32 and not gold[-1:].isdigit() else None
    if grader == "choice" or (grader == "auto" and letter):
        return _choice(text, gold_letter(gold)), None
    answer = answer_text(text) or ""
    found, wanted = read_answer(answer), _read_gold(gold)
    if not found.text:
        return Verdict(False, "no_answer"), None
    key = str(found.number) if found.number is not None else found.text
    equal, open_pair = _equal(found, wanted), None
    if equal:
        return Verdict(True, "correct", key), None
    if equal is None:
        equal = letter is not None and labelled_letter(answer) == letter  # `(C) 12` for the gold answer (C)
        open_pair = _for_parser(found, wanted) if grader != "numeric" and not equal else None
    category: Category = "unparsable" if found.number is None and wanted.number is not None else "wrong"
    return Verdict(equal, "correct" if equal else category, key), open_pair


def _equal(found: Reading, wanted: Reading) -> bool | None:
    """Where plain numbers, equal text or a contradiction decide; None where they do not.

    Integers take nothing but themselves; where neither side is one, within a relative TOLERANCE. 50% is 50 and 0.5. Text must be the same.
    """
    if found.unit and clash(found.unit, wanted.unit):
        return False
    if found.name and _other_name(found.name, wanted.name):  # x = y/2 for y = 2x is another thing than y = 3 for x = 3
        return None if wanted.name in _NAME.findall(found.latex) else False
    if found.text == wanted.text:  # most right answers
        return True
    a, b = found.number, wanted.number
    if wanted.sides or _steps(found, wanted):
        apart = a is not None and b is not None and not _close(a, b) and not wanted.name and not wanted.sides
        return False if apart else None
    if a is None or b is None:
        return None
    percents = [reading.unit == PERCENT for reading in (found, wanted)]
    return _close(a, b) or (percents[0] != percents[1] and _close(a / 100 ** percents[0], b / 100 ** percents[1]))


def _other_name(a: str, b: str) -> bool:
    """`y = 3` for `x = 3`. A variable and a word do not contradict each other: A = 205, Area = 205."""
    return bool(a and b) and a != b and (VARIABLE.fullmatch(a) is None) == (VARIABLE.fullmatch(b) is None)


def _steps(found: Reading, wanted: Reading) -> list[str]:
    """Sides that are no names. Where the gold answer is no equation, m+n in `m+n = 205` is what was asked for; k^2 in `k^2 = 205` is not."""
    letters = [set(re.findall("[A-Z]{2,}|[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", side))) for side in found.sides]
    return [side for side, of in zip(found.sides, letters, strict=True) if wanted.name or side.startswith(APPROX) or len(of) < 2]


def _close(a: Fraction, b: Fraction) -> bool:
    if a.denominator == 1 or b.denominator == 1:
        return a == b
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def _for_parser(found: Reading, wanted: Reading) -> tuple[str, str] | None:
    """The pair that the LaTeX parser shall compare, or None where the fast reading has the last word."""
    sides = _steps(found, wanted)
    gold, answer = wanted.latex, found.latex
    if wanted.sides or (wanted.name and (sides or _other_name(found.name, wanted.name))):  # 2x = 6 for x = 3
        gold, answer, sides = wanted.equation, found.equation, []
    if not gold or not answer:
        return None
    if wanted.number is not None and not (wanted.name or wanted.sides or sides) and not _COMMAND.search(answer):
        return None
    one_number = (found.number is None) != (wanted.number is None)
    if one_number and DEGREE in (found.unit, wanted.unit) and re.search(r"\\pi|\\arc", gold + answer):
        gold, answer = (latex + "^\\circ" * (reading.unit == DEGREE) for latex, reading in ((gold, wanted), (answer, found)))
    elif "\\$" in gold + answer or gold.count("\\%") != answer.count("\\%"):
        return None
    gold, answer = (latex.replace("\\%", "") for latex in (gold, "\n".join([*sides, answer])))
    if not _MATH.search(gold) or _words(gold) != _words(answer) or _differ_in_case(answer, gold):
        return None
    return (gold, answer) if max(depths(answer) + depths(gold)) <= MAX_DEPTH else None


def _words(latex: str) -> list[str]:
    """The words in it: what no parser reads, and none may drop."""
    return sorted((text or word).strip().casefold() for text, word in _WORD.findall(latex))


def _differ_in_case(a: str, b: str) -> bool:
    """Formulas that are equal but for the case of their letters, R - r and r - R, or have other capitals of the kind that math-verify folds."""
    a, b = (x.replace(" ", "") for x in (a, b))
    return (a != b and a.casefold() == b.casefold()) or set(_CAPITAL.findall(a)) != set(_CAPITAL.findall(b))


def _choice(text: str, wanted: str | None) -> Verdict:
    letter = chosen_letter(text)
    if letter is None:
        return Verdict(False, "no_answer" if answer_text(text) is None else "unparsable")
    return Verdict(letter == wanted, "correct" if letter == wanted else "wrong", letter)


def _official(text: str, gold: str) -> Verdict:
    answer = official_answer(text)
    if answer is None:
        return Verdict(False, "no_answer")
    correct = official_equal(answer, gold)
    return Verdict(correct, "correct" if correct else "wrong", strip_string(answer[:256]))
