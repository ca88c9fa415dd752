"""Whatever a policy writes: no grader raises, and none takes long. The seeds are fixed, so that a failure is one on every machine."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lgrpo.config import DataConfig
from lgrpo.rewards.grade import ERRORS, grade_all

PIECES = r"""\boxed{ \fbox{ #### \frac \sqrt \text{ \mathrm{ \mathbf{ } { ( ) [ ] \{ \} $ \$ % \% ^ _ ^\circ ° , ; : . ... \ldots = \approx < \le + - * ** / |
    0 1 5 12 000 1,000 0.3 \overline{3} x y X ab e \pi π √ ½ ² ∞ \infty \sin \log 10^{ \times or and not is the answer Answer: A B (C) D- million dollars cm km
    degrees because since <|end|> </s> ` ' " \ \\ \, ~ ! ? # \begin{pmatrix} & \pmod \in \cup \Rightarrow ＡＢ ٣ \u0301 \u200b \ud800 \x00""".replace(
    "\\u0301", "\u0301"
)
WORDS = [*PIECES.replace("\\u200b", "\u200b").replace("\\ud800", "\ud800").replace("\\x00", "\x00").split(), " ", "\n"]
PARTS = st.lists(st.sampled_from(WORDS), max_size=60).map("".join)
REPEATED = st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map("".join), st.integers(1, 400)).map(lambda x: x[0] * x[1])
TEXTS = st.one_of(PARTS, REPEATED, st.text(max_size=200), st.tuples(PARTS, REPEATED, PARTS).map("".join))
GOLDS = st.one_of(st.sampled_from(["5", "1/3", "50\\%", "x=3", "(1,2)", "B", "\\text{even}", "x^2+1", "312_5", "5\\text{ cm}"]), PARTS)
SECONDS = 2.0  # measured: below 10 ms; it finds what grows exponentially, on a loaded machine too


@pytest.mark.parametrize("grader", ["numeric", "choice", "official", "auto"])
@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, gold=GOLDS, boxed=st.booleans())
def test_no_text_breaks_or_stalls_a_grader(monkeypatch, grader, text, gold, boxed):
    monkeypatch.setattr("lgrpo.rewards.grade.shared_pool", lambda *_: Undecided())
    start = time.process_time()
    verdict = grade_all([f"\\boxed{{{text}}}" if boxed else text], [gold], DataConfig(grader=grader))[0]
    assert verdict.correct or verdict.category in ERRORS
    assert time.process_time() - start < SECONDS, (text, gold)


class Undecided:
    """A pool without processes."""

    def judge(self, pairs):
        return ["unparsable"] * len(pairs)


@settings(max_examples=1, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(PARTS, min_size=24, max_size=24))
def test_the_workers_survive_what_they_are_given(texts):
    texts = [f"\\boxed{{{text}}}" for text in texts] + ["\\boxed{1+x}"]
    verdicts = grade_all(texts, ["x+1"] * len(texts), DataConfig(grader="math", grader_seconds=2.0))
    assert verdicts[-1].correct and "crash" not in {v.category for v in verdicts}
