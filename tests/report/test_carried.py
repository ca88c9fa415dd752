"""Arms and curve of an evaluation on the report's page."""

import json

import numpy as np
import pytest
from pages import Page, table, write_run

from lgrpo.report.build import write_report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two seeds, and a run whose evaluation has neither arms nor curve."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_run(root / f"seed{seed}", seed=seed, steps=3, name="base")
    write_run(root / "without", steps=3, name="without", rollout__latent__k=2)
    file = root / "without" / "eval" / "eval.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in saved.items() if name not in ("arms", "curve")}))
    found = Page(write_report([root], root / "report.html").read_text())
    assert found.problems == []
    return found


def test_the_curve_is_that_of_the_evaluations(page):
    """Of two seeds their mean, lowest and highest; steps in the order of numbers, with the budget of the answer."""
    rows = table(page, "kept-steps")
    assert [row[:2] for row in rows] == [["base", [0.0]], ["base", [2.0]], ["base", [10.0]]] and all(row[3] == [6.0] for row in rows)
    for row, (low, high) in zip(rows, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6)), strict=True):
        np.testing.assert_allclose(row[2], [(low + high) / 2, low, high])


def test_arms_are_a_table_that_says_which_have_a_budget(page):
    (arms,) = [t for t in page.tables if t[0][1]["text"].strip() == "arm"]
    assert {row[0]["text"].strip() for row in arms[1:]} == {"base"}
    by_name = {row[1]["text"].strip(): row for row in arms[1:]}
    assert {name: row[2]["text"].strip() for name, row in by_name.items()} == {"free": "all", "forced": "6", "floor": "6"}
    np.testing.assert_allclose([float(v) for v in by_name["floor"][3]["values"]], [0.35, 0.3, 0.4])
    assert by_name["floor"][5]["values"] == []  # what an evaluation does not have is left empty
