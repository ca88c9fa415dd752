"""Inputs from public bug reports of comparable projects, with the right outcome. What does not hold yet is marked in the table, so that neither a loss
nor a gain goes unnoticed: `holds` must say what is."""

import json
from pathlib import Path

import pytest

from lgrpo.config import DataConfig
from lgrpo.rewards.grade import grade_all

CASES = json.loads((Path(__file__).parent / "field_reports.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("grader", ["auto", "numeric", "math", "choice", "official"])
def test_the_table_says_what_holds(grader):
    cases = [case for case in CASES if case["grader"] == grader]
    verdicts = grade_all([case["input"] for case in cases], [case["gold"] for case in cases], DataConfig(grader=grader))
    holds = [verdict.correct == (case["expect"] == "correct") for verdict, case in zip(verdicts, cases, strict=True)]
    changed = [case | {"holds": now} for case, now in zip(cases, holds, strict=True) if now != case["holds"]]
    assert changed == []
