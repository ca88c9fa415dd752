"""Extraction, normal forms and verdicts, on ordinary and on hostile text."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from lgrpo.rewards.answers import MAX_TEXT, answer_text
from lgrpo.rewards.grade import grade
from lgrpo.rewards.reading import MAX_ANSWER, read_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 11", "11"),
        ("so #### 3 or #### 4\nbecause", "4"),
        ("####5", "5"),
        ("#### - 5", "- 5"),
        ("####", None),
        ("#### 3 ####  ", "3"),
        ("7 ####\n8", None),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}} #### 9", "\\frac{1}{2}"),
        ("\\boxed { 11 }", "11"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{a\\}b}", "a\\}b"),
        ("\\boxed{4} \\boxed{5", "4"),
        ("\\boxed{5 #### 6", "6"),
        ("\\boxed{} 4", None),
        ("}}} \\boxed{2}", "2"),
        ("The answer is 1,234.50.", "1,234.50"),
        ("12-5", "12-5"),
        ("x = -5", "x = -5"),
        ("it is −5", "−5"),
        ("about 3 / 4 of it", "3 / 4"),
        ("a 2e5", "2e5"),
        ("so it is $-\\frac{1}{2}$.", "$-\\frac{1}{2}$"),
        ("nothing", None),
        ("", None),
    ],
)
def test_where_the_answer_is(text, answer):
    assert answer_text(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("11", 11),
        ("007", 7),
        ("1,234,567", 1234567),
        ("1{,}000", 1000),
        ("1\\,000", 1000),
        ("$5", 5),
        ("-\\$18.00", -18),
        ("50%", 50),
        ("50\\%", 50),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("2.50", Fraction(5, 2)),
        ("- 5", -5),
        ("\u22127", -7),
        ("+3", 3),
        ("3/4", Fraction(3, 4)),
        ("-6 / 8", Fraction(-3, 4)),
        ("\\frac{1}{2}", Fraction(1, 2)),
        ("\\dfrac12", Fraction(1, 2)),
        ("-\\tfrac{10}{4}", Fraction(-5, 2)),
        ("1e3", 1000),
        ("1.5E-2", Fraction(3, 200)),
        ("1.2 \\times 10^{3}", 1200),
        ("18\\text{ dollars}", 18),
        ("90^\\circ", 90),
        ("(5)", 5),
        ("\uff11\uff12", 12),
        (" \u200f 18 \u200b", 18),
        ("-9867630.0", -9867630),
        ("7 apples", 7),
        ("5 km/h", 5),
        ("1,250 square feet", 1250),
        ("12cm", 12),
        ("3\\text{ m}^2", 3),
        ("20 percent", 20),
        ("€7.50", Fraction(15, 2)),
        ("3 1/2", Fraction(7, 2)),
        ("-2\\frac{3}{4}", Fraction(-11, 4)),
        ("1\\frac12", Fraction(3, 2)),
        ("x = 5", 5),
        ("3½", Fraction(7, 2)),
        ("12 500", 12500),
        ("0.1\\overline{6}", Fraction(1, 6)),
    ],
)
def test_numbers(text, value):
    assert read_answer(text).number == value


@pytest.mark.parametrize(
    "text",
    ["1 1", "12 3", "1\x002", "3\u200f4", "5$5", "1,2", "1,0000", "--5", "1/0", "\\frac{1}{0}", "9**9**9", "1e9999", "5²", "1.2.3",
     "٣", "7 hundred", "7 or 8", "7 apples and three pens", "7x", "7k", "7th", "7 squared", "5\\text{ or }6", "2\\text{ million}", "1 11/2",
     "nan", "inf", "1_000", "0x10"],
)  # fmt: skip
def test_not_numbers(text):
    assert read_answer(text).number is None


@pytest.mark.parametrize(
    ("text", "gold", "category"),
    [
        ("#### 11", "11", "correct"),
        ("#### 11", "11.0", "correct"),
        ("#### 1,000", "1000", "correct"),
        ("\\boxed{0.5}", "\\frac{1}{2}", "correct"),
        ("\\boxed{2/4}", "1/2", "correct"),
        ("0.3333333", "1/3", "correct"),
        ("0.333", "1/3", "wrong"),
        ("#### 9867631", "-9867630.0", "wrong"),
        ("#### 9867631", "9867630.0", "wrong"),  # integers agree exactly, however they are written
        ("#### 12", "11", "wrong"),
        ("#### 1 1", "11", "unparsable"),
        ("#### 11 apples", "11", "correct"),
        ("#### 11 million", "11", "unparsable"),
        ("\\boxed{5\\text{ or }6}", "56", "unparsable"),
        ("50%", "50", "correct"),
        ("50%", "0.5", "correct"),
        ("0.5", "50%", "correct"),
        ("50", "0.5", "wrong"),
        ("50%", "5", "wrong"),
        ("#### eleven", "11", "unparsable"),
        ("", "11", "no_answer"),
        (None, "11", "no_answer"),
        ("####", "11", "no_answer"),
        ("\\boxed{\\text{}}", "11", "no_answer"),
        ("\\boxed{(A)}", "A", "correct"),
        ("\\boxed{\\text{Evelyn}}", "evelyn", "correct"),
        ("\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}", "(3,\\dfrac{\\pi}{2})", "correct"),
        ("\\boxed{B}", "A", "wrong"),
        ("\\boxed{12-1}", "11", "unparsable"),  # an exercise, not an answer
        ("\\boxed{5}", "x", "wrong"),
        ("#### 25", "025", "correct"),
    ],
)
def test_verdicts(text, gold, category):
    verdict = grade(text, gold)
    assert verdict.category == category and verdict.correct == (category == "correct")


def test_grading_is_symmetric_in_how_numbers_are_written():
    forms = ["1250", "1,250", "$1250", "1250.00", "2500/2", "\\frac{2500}{2}", "1.25e3", "1.25\\times10^3", "+1250"]
    assert all(grade(f"\\boxed{{{a}}}", b).correct for a in forms for b in forms)
    assert not any(grade(f"\\boxed{{{a}}}", "1251").correct for a in forms)


BIG = 100_000
HOSTILE = [
    "{" * BIG + "\\boxed{5}",
    "\\boxed{" * BIG,
    "\\boxed{" * BIG + "}" * BIG,
    "}" * BIG,
    "\\boxed{" + "{" * BIG,
    "\\text{" * BIG,
    "\\boxed{" + "\\text{" * 40 + "}" * 41,
    "#### " + "9**" * BIG + "9",
    "#### 9**9**9**9",
    "#### 1e" + "9" * BIG,
    "#### 1e999/1e-999",
    "9" * BIG,
    "1," * BIG,
    "1/" * BIG,
    "-" * BIG,
    ("1" + " " * 500) * 200,
    "#" * BIG,
    "####" + " " * BIG + "5",
    "\x00" * BIG,
    "#### \x00\u202e5\u202c" * 1000,
    "\u0301" * BIG,
    "\ud800 #### \udfff",
    "\\frac" * BIG,
    "\\boxed{" + "^\\circ" * 40 + "}",
    "__import__('os').system('true')",
    "#### 5 " + "a " * 100 + "1",
    "#### 5" + "a" * 240 + "\\",
    "#### " + "\\triangle " * 21 + "1 = 5",
    "\\boxed{5" + "\\text{a}" * 30 + "}",
    "\\boxed{1}" + ", and " * 8 + "\\boxed{2}",
    "\\boxed{\\text{}",
    "answer is " * 5000,
    "The answer is " + "clearly " * 5000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_takes_no_time_and_raises_nothing(text):
    start = time.perf_counter()
    verdict = grade(text, "123456")
    assert not verdict.correct
    read_answer(text)
    assert time.perf_counter() - start < 10  # measured: below 5 ms; a hang guard, not a benchmark


def test_only_the_end_is_read_and_long_answers_are_not_interpreted():
    assert answer_text("#### 5\n" + " " * MAX_TEXT) == "5"
    assert answer_text("#### 5\n" + "x" * MAX_TEXT) is None
    assert not grade("#### 5" + " " * MAX_ANSWER + "6", "5").correct
    assert not grade("\\boxed{5" + "\u200b" * MAX_ANSWER + "}", "5").correct


@pytest.mark.parametrize("answer", ["5", "-7", "1,234", "$5.00", "-1.50", "\\$1,000.25", "007", "\\frac{1}{2}", "-\\dfrac{10}{4}"])
def test_the_short_ways_read_as_the_long_one_does(answer):
    assert read_answer(answer) == read_answer(f" {answer}")
