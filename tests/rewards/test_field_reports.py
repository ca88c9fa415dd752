"""Inputs from public bug reports of comparable projects, each with the right outcome. An `exception` is an expectation that we hold to be wrong, or to
contradict another one: docs/evaluation.md says why."""

import json
from pathlib import Path

import pytest

from lgrpo.config import DataConfig
from lgrpo.rewards.grade import grade_all

CASES = json.loads((Path(__file__).parent / "field_reports.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def correct():
    """Whether each case is taken for correct; all that share a grader in one call, so that its workers start once."""
    out = {}
    for grader in {case["grader"] for case in CASES}:
        rows = [n for n, case in enumerate(CASES) if case["grader"] == grader]
        verdicts = grade_all(
            [CASES[n]["input"] for n in rows], [CASES[n]["gold"] for n in rows], DataConfig(grader=grader, grader_seconds=30)
        )
        out |= {n: verdict.correct for n, verdict in zip(rows, verdicts, strict=True)}
    return out


@pytest.mark.parametrize("n", range(len(CASES)), ids=[f"{case['kind']}-{n}" for n, case in enumerate(CASES)])
def test_case(n, correct):
    wanted = CASES[n]["expect"] == "correct"
    assert correct[n] == (wanted != ("exception" in CASES[n])), CASES[n]


def test_exceptions_are_few():
    assert sum("exception" in case for case in CASES) <= len(CASES) / 20
