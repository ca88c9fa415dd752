"""The embedded task: short word problems with a running total, in the GSM8K-Aug style.

A problem is a pure function of (difficulty, split, index). A record looks like this:

    problem: Ann has 12 pens. She buys 3 more pens. Ann loses 4 pens. How many pens does Ann have?
    cot:     <<12+3=15>> <<15-4=11>>
    answer:  11

Difficulties with chain="words" tell the same steps in sentences: `12 pens and 3 more is 15 pens. 15 pens with 4 fewer is 11 pens.`

Splits cannot share a problem: the checksum of its text decides which split may hold it, and a problem that falls elsewhere is drawn again.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np

from lgrpo.errors import UserError

T = TypeVar("T")

SPLITS = ("train", "valid", "test")
_FULL = {"train": 40000, "valid": 1000, "test": 2000}
_MINI = {"train": 2000, "valid": 200, "test": 200}


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """What problems may contain."""

    ops: tuple[int, int]
    """Fewest and most operations."""
    high: int
    """Every quantity lies in 0..high; at most 99, the largest number of the embedded tokenizer."""
    operand: int = 9
    """Addends and subtrahends lie in 1..operand."""
    factors: tuple[int, ...] = ()
    """Factors of multiplications: 2, 3 or both; empty: none."""
    reference: float = 0.0
    """Share of problems with a second person, whose count is worked out first and then used as an operand."""
    chain: Literal["equations", "words"] = "equations"
    """How the chain of thought tells a step: as an equation, or as a sentence."""
    sizes: dict[str, int] = dataclasses.field(default_factory=lambda: dict(_FULL))
    """Records per split."""


DIFFICULTIES = {
    "mini": Difficulty(ops=(1, 2), high=10, sizes=_MINI),
    "demo": Difficulty(ops=(3, 4), high=10),
    "demo_words": Difficulty(ops=(3, 4), high=10, chain="words"),
    "easy": Difficulty(ops=(2, 3), high=20),
    "medium": Difficulty(ops=(3, 4), high=50),
    "hard": Difficulty(ops=(4, 6), high=99, factors=(2, 3), reference=0.5),
}

PEOPLE = {
    "He": ("Tom", "Ben", "Max", "Sam", "Leo", "Omar", "Ravi", "Ken"),
    "She": ("Ann", "Mia", "Zoe", "Eva", "Lucy", "Nora", "Priya", "Yuki"),
}
_PERSONS = tuple((name, pronoun) for pronoun, names in PEOPLE.items() for name in names)
# (one, many, edible)
OBJECTS = (
    ("apple", "apples", True),
    ("cookie", "cookies", True),
    ("plum", "plums", True),
    ("nut", "nuts", True),
    ("pen", "pens", False),
    ("book", "books", False),
    ("coin", "coins", False),
    ("card", "cards", False),
    ("stamp", "stamps", False),
    ("shell", "shells", False),
    ("marble", "marbles", False),
    ("ticket", "tickets", False),
)
# {s} subject, {n} number, {o} object in the number's form, {m} object in the plural, {r} the other person.
START = ("{s} has {n} {o}.", "{s} owns {n} {o}.", "{s} starts with {n} {o}.")
ADD = (
    "{s} buys {n} more {o}.",
    "{s} finds {n} {o}.",
    "{s} gets {n} more {o}.",
    "{s} wins {n} {o}.",
    "{s} picks up {n} {o}.",
    "{s} is given {n} {o}.",
)
SUB = ("{s} gives away {n} {o}.", "{s} loses {n} {o}.", "{s} sells {n} {o}.", "{s} drops {n} {o}.", "{s} throws out {n} {o}.")
EAT = ("{s} eats {n} {o}.",)
MULTIPLY = {
    2: ("{s} doubles the {m}.", "Now {s} has twice as many."),
    3: ("{s} triples the {m}.", "Now {s} has 3 times as many."),
}
START_MORE = ("{s} has {n} more {o} than {r}.",)
START_FEWER = ("{s} has {n} fewer {o} than {r}.",)
START_TIMES = {2: ("{s} has twice as many {m} as {r}.",), 3: ("{s} has 3 times as many {m} as {r}.",)}
ADD_REFERENCE = ("{s} gets as many {m} as {r} has.",)
SUB_REFERENCE = ("{s} loses as many {m} as {r} has.",)
QUESTION = ("How many {m} does {s} have?", "How many {m} does {s} have now?")


# Sentences of a chain in words: {a} {b} operands, {r} result, {oa} {or_} the object in the form of the number. They use no word that the problems
# and the instruction do not have, so the vocabulary is the same with and without them.
STEPS = {
    "+": "{a} {oa} and {b} more is {r} {or_}.",
    "-": "{a} {oa} with {b} fewer is {r} {or_}.",
    "*": "{b} times {a} {oa} is {r} {or_}.",
}


def all_patterns() -> list[str]:
    """Every sentence pattern, for the tokenizer's vocabulary."""
    tables = [START, ADD, SUB, EAT, *MULTIPLY.values(), START_MORE, START_FEWER, *START_TIMES.values()]
    return [pattern for table in [*tables, ADD_REFERENCE, SUB_REFERENCE, QUESTION] for pattern in table]


class _Draws:
    """Choices from one seed. Raw PCG64 words, because NumPy promises that they never change, which it does not for Generator methods."""

    def __init__(self, *seed: int) -> None:
        self._words: Iterator[int] = iter(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(64).tolist())

    def between(self, low: int, high: int) -> int:
        """An integer in low..high, both included (the bias of the remainder is below 1e-17)."""
        return low + next(self._words) % (high - low + 1)

    def pick(self, options: Sequence[T]) -> T:
        return options[next(self._words) % len(options)]

    def chance(self, share: float) -> bool:
        return next(self._words) < share * 2.0**64


class _DeadEndError(Exception):
    """No operation fits; the caller draws again."""


class _Story:
    """Sentences and steps so far."""

    def __init__(self, draws: _Draws, level: Difficulty) -> None:
        self.draws, self.level = draws, level
        self.one, self.many, self.edible = draws.pick(OBJECTS)
        self.sentences: list[str] = []
        self.steps: list[str] = []
        self.result = 0

    def tell(self, patterns: Sequence[str], subject: str, number: int = 0, other: str = "") -> None:
        """Adds one sentence."""
        noun = self.one if number == 1 else self.many
        self.sentences.append(self.draws.pick(patterns).format(s=subject, n=number, o=noun, m=self.many, r=other))

    def work_out(self, a: int, sign: str, b: int) -> int:
        """Adds one step to the chain and returns its result."""
        result = self.result = a + b if sign == "+" else a - b if sign == "-" else a * b
        if self.level.chain == "words":
            named = {"oa": self.one if a == 1 else self.many, "or_": self.one if result == 1 else self.many}
            self.steps.append(STEPS[sign].format(a=a, b=b, r=result, **named))
        else:
            self.steps.append(f"<<{a}{sign}{b}={result}>>")
        return result

    def begin(self, subject: str) -> int:
        """First sentence of a person; returns the count."""
        total = self.draws.between(1, self.level.high)
        self.tell(START, subject, total)
        return total

    def change(self, subject: str, total: int) -> int:
        """One operation with a literal operand, chosen among the kinds that stay in range; returns the new total."""
        level, kinds = self.level, []
        if total < level.high:
            kinds.append("+")
        if total > 0:
            kinds.append("-")
        factors = [f for f in level.factors if 0 < total * f <= level.high]
        if factors:
            kinds.append("*")
        kind = self.draws.pick(kinds)
        if kind == "*":
            factor = self.draws.pick(factors)
            self.tell(MULTIPLY[factor], subject)
            return self.work_out(total, "*", factor)
        room = level.high - total if kind == "+" else total
        operand = self.draws.between(1, min(level.operand, room))
        self.tell(ADD if kind == "+" else SUB + EAT * self.edible, subject, operand)
        return self.work_out(total, kind, operand)

    def begin_from(self, subject: str, other: str, count: int) -> int:
        """First sentence of a person whose count depends on another's; one operation."""
        level, draws = self.level, self.draws
        factors = [f for f in level.factors if 0 < count * f <= level.high]
        kinds = ["+"] * (count < level.high) + ["-"] * (count > 0) + ["*"] * bool(factors)
        kind = draws.pick(kinds)
        if kind == "*":
            factor = draws.pick(factors)
            self.tell(START_TIMES[factor], subject, other=other)
            return self.work_out(count, "*", factor)
        operand = draws.between(1, min(level.operand, level.high - count if kind == "+" else count))
        self.tell(START_MORE if kind == "+" else START_FEWER, subject, operand, other)
        return self.work_out(count, kind, operand)

    def refer(self, subject: str, total: int, other: str, count: int) -> int:
        """One operation whose operand is another person's count. Raises _DeadEndError when neither sign stays in range."""
        kinds = ["+"] * (total + count <= self.level.high) + ["-"] * (total >= count)
        if not kinds or count == 0:
            raise _DeadEndError
        kind = self.draws.pick(kinds)
        self.tell(ADD_REFERENCE if kind == "+" else SUB_REFERENCE, subject, other=other)
        return self.work_out(total, kind, count)


def _one_person(story: _Story, count: int) -> str:
    """Tells `count` operations about one person; returns the name asked for."""
    name, pronoun = story.draws.pick(_PERSONS)
    total = story.begin(name)
    for _ in range(count):
        # a pronoun cannot follow "Now", where it would be in lower case
        total = story.change(name if story.level.factors else story.draws.pick((name, pronoun)), total)
    return name


def _two_people(story: _Story, count: int) -> str:
    """Tells `count` operations: first the other person's one or two, then those of the person asked for, one of them a reference."""
    draws = story.draws
    other, _ = draws.pick(_PERSONS)
    name, _ = draws.pick([person for person in _PERSONS if person[0] != other])
    first = draws.between(1, 2)
    helper = story.begin(other)
    for _ in range(first):
        helper = story.change(other, helper)
    rest = count - first
    if draws.chance(0.5):
        total = story.begin_from(name, other, helper)
        at, rest = -1, rest - 1
    else:
        total = story.begin(name)
        at = draws.between(0, rest - 1)
    for i in range(rest):
        total = story.refer(name, total, other, helper) if i == at else story.change(name, total)
    return name


def _draw(level: Difficulty, seed: tuple[int, ...]) -> dict[str, str]:
    """One problem, whatever split it falls into. Raises _DeadEndError."""
    draws = _Draws(*seed)
    story = _Story(draws, level)
    count = draws.between(*level.ops)
    two = count >= 3 and draws.chance(level.reference)
    name = (_two_people if two else _one_person)(story, count)
    story.tell(QUESTION, name)
    return {"problem": " ".join(story.sentences), "cot": " ".join(story.steps), "answer": str(story.result)}


def split_of(problem: str) -> str:
    """The only split that may hold this problem: one eighth of all texts each for test and valid."""
    return {0: "test", 1: "valid"}.get(zlib.crc32(problem.encode()) % 8, "train")


def generate(difficulty: str, split: str, index: int) -> dict[str, str]:
    """Record `index` of a split: {problem, cot, answer}, all text. Pure, and the same on every machine and NumPy version.

    Errors: UserError for an unknown difficulty or split, IndexError for an index outside the split.
    """
    level = level_of(difficulty)
    if split not in level.sizes:
        raise UserError(f"data: split {split!r} of word_problems does not exist; choose one of {', '.join(level.sizes)}")
    if not 0 <= index < level.sizes[split]:
        raise IndexError(f"{difficulty}/{split} has records 0..{level.sizes[split] - 1}, not {index}")
    name = zlib.crc32(difficulty.encode())  # by name, so that a new row of the table changes no other difficulty
    for attempt in range(10_000):
        try:
            record = _draw(level, (name, SPLITS.index(split), index, attempt))
        except _DeadEndError:
            continue
        if split_of(record["problem"]) == split:
            return record
    raise RuntimeError(f"no {difficulty} problem falls into {split}; the difficulty allows too few problems")


def level_of(difficulty: str) -> Difficulty:
    """Row of the difficulty table. Errors: UserError for an unknown name."""
    if difficulty not in DIFFICULTIES:
        raise UserError(f"data.difficulty: {difficulty!r} is unknown; choose one of {', '.join(DIFFICULTIES)}")
    return DIFFICULTIES[difficulty]
