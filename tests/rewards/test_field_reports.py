"""Inputs from public bug reports of comparable projects, each with the right outcome, and more of the same kinds. An `exception` is an expectation that
we hold to be wrong, or to contradict another one: docs/evaluation.md says why."""

import json
from pathlib import Path

import pytest

from lgrpo.config import DataConfig
from lgrpo.rewards.grade import grade_all

HERE = Path(__file__).parent
CASES = json.loads((HERE / "field_reports.json").read_text(encoding="utf-8"))
KINDS = json.loads((HERE / "kinds.json").read_text(encoding="utf-8"))


def correct(pairs, grader):
    """Whether each (input, gold) is taken for correct; in one call, so that the workers share it."""
    cfg = DataConfig(grader=grader, grader_seconds=30)
    return [verdict.correct for verdict in grade_all([text for text, _ in pairs], [gold for _, gold in pairs], cfg)]


@pytest.fixture(scope="module")
def verdicts():
    out = {}
    for grader in {case["grader"] for case in CASES}:
        rows = [n for n, case in enumerate(CASES) if case["grader"] == grader]
        out |= dict(zip(rows, correct([(CASES[n]["input"], CASES[n]["gold"]) for n in rows], grader), strict=True))
    return out


@pytest.mark.parametrize("n", range(len(CASES)), ids=[f"{case['kind']}-{n}" for n, case in enumerate(CASES)])
def test_report(n, verdicts):
    wanted = CASES[n]["expect"] == "correct"
    assert verdicts[n] == (wanted != ("exception" in CASES[n])), CASES[n]


def test_exceptions_are_few():
    assert sum("exception" in case for case in CASES) <= len(CASES) / 20


@pytest.mark.parametrize("kind", KINDS, ids=[f"{kind['kind']}-{kind['grader']}-{kind['expect']}" for kind in KINDS])
def test_kind(kind):
    found = correct(kind["cases"], kind["grader"])
    assert [case for case, right in zip(kind["cases"], found, strict=True) if right != (kind["expect"] == "correct")] == []
