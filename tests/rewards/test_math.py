"""LaTeX in worker processes: equivalence, limits, and what happens when a worker is slow, too large or dead."""

from __future__ import annotations

import os
import signal
import time

import pytest

from lgrpo.config import DataConfig
from lgrpo.errors import UserError
from lgrpo.rewards import math_rules, workers
from lgrpo.rewards.grade import grade, grade_all
from lgrpo.rewards.workers import WorkerPool, shared_pool

FAST = DataConfig(grader_seconds=5.0, grader_workers=2)
HURRIED = DataConfig(grader_seconds=1.0, grader_workers=2)


@pytest.fixture
def pool():
    pool = WorkerPool(1, 1.5, memory_mb=400)
    yield pool
    pool.close()


CASES = [
    ("\\boxed{x+1}", "1+x", "correct"),
    ("\\boxed{\\frac{2\\pi}{4}}", "\\frac{\\pi}{2}", "correct"),
    ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", "correct"),
    ("\\boxed{\\sqrt{4}}", "2", "correct"),
    ("\\boxed{5^2}", "25", "correct"),
    ("\\boxed{\\{2, 1\\}}", "\\{1,2\\}", "correct"),
    ("\\boxed{[0, 1)}", "[0,1)", "correct"),
    ("\\boxed{(4,3)}", "(3,4)", "wrong"),
    ("\\boxed{x-1}", "1-x", "wrong"),
    ("\\boxed{1.414}", "\\sqrt{2}", "wrong"),
    ("\\boxed{\\frac{1}{}", "x+1", "unparsable"),
    ("\\boxed{\\sqrt{5}}", "2", "wrong"),
    ("\\boxed{\\sqrt{4}\\text{ million}}", "2", "unparsable"),
    ("\\boxed{1 1}", "11", "unparsable"),
]


def test_equivalent_latex():
    verdicts = grade_all([text for text, _, _ in CASES], [gold for _, gold, _ in CASES], FAST)
    assert [v.category for v in verdicts] == [category for *_, category in CASES]


@pytest.mark.parametrize(
    ("correction", "without", "gold", "answer", "right"),
    [
        ("_equations", lambda a, b: None, "5", "k^2=5", "wrong"),
        ("_equations", lambda a, b: None, "x=3", "2x=6", "correct"),
        ("_equations", lambda a, b: None, "1=1", "2=3", "wrong"),
        ("_as_sets", lambda a, b: (a, b), "(-\\infty,1)\\cup(2,\\infty)", "x<1, x>2", "correct"),
        ("_as_sets", lambda a, b: (a, b), "|x|\\leq 3", "-3\\leq x\\leq 3", "correct"),
        ("_read", lambda latex, real: math_rules.parsed(latex.replace("\\wedge", ","), real), "\\emptyset", "x<1\\wedge x>2", "correct"),
        ("_imaginary", lambda value: value, "-1", "i^2", "correct"),
        ("_apart", lambda a, b: False, "\\frac{1}{2^{61}}", "\\frac{1}{2^{60}}", "wrong"),
        ("_other_order", lambda a, b, braces: False, "2,5", "(5,2)", "wrong"),
        ("_agrees", lambda value, side: True, "5", "4\n5", "wrong"),
    ],
)
def test_each_correction_of_math_verify_has_a_case_that_needs_it(monkeypatch, correction, without, gold, answer, right):
    assert math_rules.judge(gold, answer) == right
    monkeypatch.setattr(math_rules, correction, without)
    math_rules.parsed.cache_clear()
    assert math_rules.judge(gold, answer) not in (right, "unparsable")
    math_rules.parsed.cache_clear()


def test_without_the_parser_only_equal_text_counts():
    assert not grade("\\boxed{x+1}", "1+x", "numeric").correct
    assert grade("\\boxed{x + 1}", "x+1", "numeric").correct


DEEP = "\\frac{1" * 20 + "}" * 20
HOSTILE = [
    "9^{9^{9^9}}",
    "9^{9^{9^{9^9}}}",
    "(10^7)!",
    "\\sum_{k=1}^{10^9}\\sin(k)",
    DEEP,
    "\\frac{1}{" * 22 + "2" + "}" * 22,
    "{" * 100_000,
    "{" * 20 + "x" + "}" * 20,
    "x" * 1_000_000,
    "\\sqrt" * 40,
    "\x00\u202ex+1\u202c\x00",
    "\\boxed{x",
    "\\int_0^{\\infty} e^{-x^2} \\sin(x^3) dx",
    "\\begin{pmatrix}" * 10,
    "$x^2$" * 30,
    "__import__('os').system('true')^2",
    "\ud800^2",
]


def test_hostile_latex_costs_bounded_time_and_never_raises():
    start = time.perf_counter()
    verdicts = grade_all([f"\\boxed{{{text}}}" for text in HOSTILE], ["x+2"] * len(HOSTILE), HURRIED)
    assert not any(v.correct for v in verdicts)
    assert time.perf_counter() - start < HURRIED.grader_seconds * len(HOSTILE) / 2 + 15
    assert grade_all(["\\boxed{2+x}"], ["x+2"], HURRIED)[0].correct  # the workers that were killed have been replaced


def test_a_slow_answer_is_a_timeout_and_does_not_hold_up_the_others(pool):
    slow = "9^{9^{9^9}}"
    assert pool.judge([("x+1", "1+x"), ("x+1", slow), ("x+1", "x+2"), ("x+1", "1+x")]) == ["correct", "timeout", "wrong", "correct"]
    start = time.perf_counter()
    assert pool.judge([("x+1", slow)]) == ["timeout"]  # remembered
    assert time.perf_counter() - start < 10  # a hang guard, not a benchmark


def test_a_dead_worker_is_replaced_and_no_answer_pays_for_it(pool):
    assert pool.judge([("x+1", "1+x")]) == ["correct"]
    worker = pool._workers[0].process
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert pool.judge([("x+2", "2+x")]) == ["correct"]
    assert worker.pid not in [w.process.pid for w in pool._workers]


def test_a_worker_that_dies_over_an_answer_gets_one_more_chance(pool, monkeypatch):
    honest, sent = workers._Worker.send, []

    def deadly(self, pair, seconds):
        honest(self, pair, seconds)
        sent.append(pair)
        if pair == ("x+1", "monster") or sent.count(pair) == 1:  # killed from outside the first time, by the monster every time
            self.process.kill()

    monkeypatch.setattr(workers._Worker, "send", deadly)
    assert pool.judge([("x+2", "2+x"), ("x+1", "monster")]) == ["correct", "crash"]
    assert sorted(sent) == [("x+1", "monster")] * 2 + [("x+2", "2+x")] * 2


def test_memory_is_bounded(pool):
    pool._memory = 60
    outcome = pool.judge([("x+1", "10^{10^{9}}"), ("x+1", "1+x")])
    assert outcome[0] in ("crash", "timeout", "unparsable") and outcome[1] == "correct"


def test_after_many_timeouts_there_is_less_time(pool, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 1)
    monkeypatch.setattr(workers, "HURRY", 0.25)
    start = time.perf_counter()
    assert pool.judge([("x+1", f"{n}^{{9^{{9^9}}}}") for n in (7, 8, 9)]) == ["timeout"] * 3
    assert time.perf_counter() - start < 3.9 + 3 * 3  # 1.5 + 0.4 + 0.4 seconds and three starts


def test_a_worker_without_a_parent_ends(pool):
    worker = workers._Worker(400, -1.0)  # one second
    while worker.receive() != "ready":
        pass
    worker.send(("x+1", "9^{9^{9^9}}"), 60)
    assert worker.process.wait(timeout=20) == -signal.SIGXCPU
    worker.kill()


def test_a_worker_that_cannot_start_stops_the_run(monkeypatch):
    monkeypatch.setattr(workers.math_worker, "__name__", "lgrpo.no_such_module")
    pool = WorkerPool(1, 2.0)
    with pytest.raises(UserError, match="math_verify"):
        pool.judge([("x+1", "1+x")])


def test_numbers_start_no_process():
    shared_pool.cache_clear()
    assert grade_all(["#### 5", "#### x+1"], ["5", "5"], DataConfig(grader_seconds=3.5))[0].correct
    assert shared_pool.cache_info().currsize == 0
