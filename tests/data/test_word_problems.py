"""The generated problems: their arithmetic, their ranges, their wording and their splits."""

from __future__ import annotations

import operator
import re

import pytest

from lgrpo.data import word_problems
from lgrpo.errors import UserError

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
NOUN = {noun for one, many, _ in word_problems.OBJECTS for noun in (one, many)}


def sample(difficulty: str, split: str, count: int) -> list[dict[str, str]]:
    return [word_problems.generate(difficulty, split, i) for i in range(count)]


def equations(cot: str) -> list[tuple[int, str, int, int]]:
    """Parses a chain with nothing of the generator; every character must be accounted for."""
    found = re.findall(r"<<(\d+)([-+*])(\d+)=(\d+)>>", cot)
    assert " ".join(f"<<{a}{s}{b}={r}>>" for a, s, b, r in found) == cot
    return [(int(a), s, int(b), int(r)) for a, s, b, r in found]


def sentences(cot: str) -> list[tuple[int, str, int, int]]:
    """As equations, for a chain in words; the nouns must agree with their numbers."""
    kinds = {
        "+": r"(?P<a>\d+) (?P<n>\w+) and (?P<b>\d+) more is (?P<r>\d+) (?P<m>\w+)\.",
        "-": r"(?P<a>\d+) (?P<n>\w+) with (?P<b>\d+) fewer is (?P<r>\d+) (?P<m>\w+)\.",
        "*": r"(?P<b>\d+) times (?P<a>\d+) (?P<n>\w+) is (?P<r>\d+) (?P<m>\w+)\.",
    }
    found = []
    for sentence in re.split(r"(?<=\.) ", cot):
        sign, match = next((s, m) for s, pattern in kinds.items() if (m := re.fullmatch(pattern, sentence)))
        a, b, result = (int(match[name]) for name in "abr")
        assert match["n"] in NOUN and match["n"].endswith("s") == (a != 1)
        assert match["m"] in NOUN and match["m"].endswith("s") == (result != 1)
        found.append((a, sign, b, result))
    return found


def understand(problem: str) -> int:
    """Reads the words, sentence by sentence, and works the answer out: an oracle that never sees the chain."""
    counts: dict[str, int] = {}
    speaker = ""
    *story, question = [s.strip() for s in re.split(r"(?<=[.?])\s", problem)]
    for sentence in story:
        words = sentence.rstrip(".").split()
        if words[0] == "Now":
            words = words[1:]
        speaker = speaker if words[0] in ("He", "She") else words[0]
        text, numbers = " ".join(words[1:]), [int(w) for w in words if w.isdigit()]
        before = counts.get(speaker, 0)
        if match := re.search(r"as many \w+ as (\w+)$", text):
            other = counts[match[1]]
            counts[speaker] = 2 * other if "twice" in text else numbers[0] * other
        elif match := re.search(r"as many \w+ as (\w+) has$", text):
            counts[speaker] = before + counts[match[1]] * (1 if text.startswith("gets") else -1)
        elif match := re.search(r"(more|fewer) \w+ than (\w+)$", text):
            counts[speaker] = counts[match[2]] + numbers[0] * (1 if match[1] == "more" else -1)
        elif text.startswith("doubles") or text == "has twice as many":
            counts[speaker] = before * 2
        elif text.startswith("triples") or text == "has 3 times as many":
            counts[speaker] = before * 3
        elif speaker not in counts:
            assert words[1] in ("has", "owns", "starts"), sentence
            counts[speaker] = numbers[0]
        elif words[1] in ("buys", "finds", "gets", "wins", "picks", "is"):
            counts[speaker] = before + numbers[0]
        else:
            assert words[1] in ("gives", "loses", "sells", "drops", "throws", "eats"), sentence
            counts[speaker] = before - numbers[0]
    return counts[re.search(r"does (\w+) have", question)[1]]


@pytest.mark.parametrize("difficulty", word_problems.DIFFICULTIES)
def test_chains_are_right_and_answer_what_the_words_ask(difficulty):
    level = word_problems.DIFFICULTIES[difficulty]
    for record in sample(difficulty, "train", 1500):
        steps = (sentences if level.chain == "words" else equations)(record["cot"])
        assert level.ops[0] <= len(steps) <= level.ops[1]
        for a, sign, b, result in steps:
            assert SIGNS[sign](a, b) == result
            assert 0 <= a <= level.high and 0 <= b <= level.high and 0 <= result <= level.high
            assert sign != "*" or b in level.factors
        assert record["answer"] == str(steps[-1][3]) == str(understand(record["problem"])), record


def test_hard_uses_everything_it_announces():
    records = sample("hard", "train", 600)
    text = " ".join(r["problem"] for r in records)
    for piece in ("doubles", "triples", "twice as many", "3 times as many", "more", "fewer", "gets as many", "loses as many"):
        assert piece in text, piece
    two = sum(" than " in r["problem"] or (" as many " in r["problem"] and " has." in r["problem"]) for r in records)
    assert 0.3 < two / len(records) < 0.75


def test_numbers_agree_with_their_nouns():
    for record in sample("medium", "train", 500):
        for number, noun in re.findall(r"(\d+) (?:more )?([a-z]+)", record["problem"]):
            if noun in NOUN:
                assert (number == "1") == (not noun.endswith("s")), record["problem"]


def test_a_problem_is_a_pure_function_of_its_address():
    first = sample("easy", "valid", 30)
    sample("hard", "train", 5)
    assert sample("easy", "valid", 30) == first
    assert sample("easy", "test", 30) != first
    # pinned: prepared data and tokenised checkpoints depend on these words
    assert word_problems.generate("mini", "test", 0) == {
        "problem": "Priya starts with 5 plums. She buys 1 more plum. She buys 4 more plums. How many plums does Priya have?",
        "cot": "<<5+1=6>> <<6+4=10>>",
        "answer": "10",
    }


def test_splits_share_no_problem():
    sizes = word_problems.DIFFICULTIES["mini"].sizes
    texts = {split: {r["problem"] for r in sample("mini", split, sizes[split])} for split in sizes}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["valid"] and not texts["valid"] & texts["test"]
    assert len(texts["train"]) > 0.95 * sizes["train"]


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="medium"):
        word_problems.generate("medum", "train", 0)
    with pytest.raises(UserError, match="valid"):
        word_problems.generate("mini", "dev", 0)
    with pytest.raises(IndexError):
        word_problems.generate("mini", "test", 200)
