"""Tables of evaluations in the report: their numbers are those of the files, and what cannot be compared is said or kept apart."""

import json
import re

import pytest
from pages import Page, evaluation, interval, table, write_run

from lgrpo.report import evaluations
from lgrpo.report.build import write_report
from lgrpo.report.runs import find_runs, group_runs


def test_the_table_is_that_of_the_evaluation(tmp_path):
    """Every number of an eval.json differs here, so that none can stand for another."""
    write_run(tmp_path / "a", steps=2)
    names = ("pass@1", "chain_tokens", "answer_tokens", "invalid_frac")
    evaluated = {
        part: {name: interval(0.1 * i + 0.01 * j) for j, name in enumerate(names)} for i, part in enumerate(("noise_free", "sampled"))
    }
    evaluated["sampled"]["pass@4"] = interval(0.9)
    (tmp_path / "a" / "eval" / "eval.json").write_text(json.dumps(evaluation(0.5, step=2) | evaluated))
    (found,) = evaluations.comparisons(group_runs(find_runs([tmp_path])), suites=False)
    assert not found.warnings
    shown = evaluations.table(found)
    clean, sampled = evaluated["noise_free"], evaluated["sampled"]
    wanted = ["run", "latents", "word_problems/mini, test", 10, 1.0, "T 1", 4, 2, clean["pass@1"], sampled["pass@1"], sampled["pass@4"]]
    assert shown["rows"] == [[*wanted, clean["chain_tokens"], clean["answer_tokens"], sampled["invalid_frac"]]]
    assert len(shown["columns"]) == len(shown["rows"][0])


def other(folder, name, **changes):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "eval.json").write_text(json.dumps(evaluation(0.25, **changes)))


def test_evaluations_of_other_problems_never_share_a_table(tmp_path):
    """Two evaluations of different splits in one workdir, and a second run that saw 6 of another set under the same name: nothing is compared."""
    write_run(tmp_path / "a", name="a", steps=2)
    write_run(tmp_path / "b", name="b", steps=2)
    other(tmp_path / "a", "aaa", split="hard", problem_set="q", problems=50, step=2)
    other(tmp_path / "b", "eval", split="svamp", problem_set="r", problems=6, step=2)
    text = write_report([tmp_path], tmp_path / "r.html").read_text()
    page = Page(text)
    assert page.problems == []
    titles = ["eval: word_problems/mini, test, 10 problems", "eval: word_problems/mini, svamp, 6 problems"]
    titles += ["aaa: word_problems/mini, hard, 50 problems"]
    assert list(dict.fromkeys(t for t in page.texts if t in titles)) == titles
    by_section = dict(re.findall(r'<section id="section-(evaluation[\w-]*)".*?(<tbody>.*?</tbody>)', text, re.S))
    rows = {key: re.findall(r"</span>(\w+)</td>", body) for key, body in by_section.items()}
    assert rows == {"evaluation-eval": ["a"], "evaluation-eval-2": ["b"], "evaluation-aaa": ["a"]}
    warned = [t for t in page.texts if t.startswith("Warning")]
    assert sum("not of the same problems" in w and "6 problems" in w for w in warned) == 2
    assert [row[1:] for row in table(page, "aaa-accuracy")] == [[[0.25, 0.2, 0.3], [0.25, 0.2, 0.3]]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"noise_scale": 0.5}, "latent noise is 1.0 in a; 0.5 in b"),
        ({"answers": "greedy"}, "answers is T 1 in a; greedy in b"),
        ({"step": 1}, "checkpoint step is 2 in a; 1 in b"),
        ({"which": "init"}, "not those it trained"),
        ({"instruction": "Think."}, "instruction is none in a; Think. in b"),
    ],
)
def test_a_difference_between_rows_is_a_warning(tmp_path, changes, says):
    write_run(tmp_path / "a", name="a", steps=2)
    write_run(tmp_path / "b", name="b", steps=2, optim__lr=1e-3)
    other(tmp_path / "b", "eval", **({"step": 2} | changes))
    (found,) = evaluations.comparisons(group_runs(find_runs([tmp_path])), suites=False)
    assert [arm.label for arm in found.arms] == ["a", "b"] and any(says in w for w in found.warnings)


def test_tokens_beside_latents_are_no_warning_and_unlike_seeds_are_no_mean(tmp_path):
    write_run(tmp_path / "a", name="a", steps=2)
    write_run(tmp_path / "b", name="b", steps=2, rollout__mode="explicit")
    other(tmp_path / "b", "eval", step=2, thinks_in="tokens", noise_scale=None)
    write_run(tmp_path / "c", name="a", seed=1, steps=2)
    other(tmp_path / "c", "eval", step=2, samples=8)
    (found,) = evaluations.comparisons(group_runs(find_runs([tmp_path])), suites=False)
    assert sorted(len(arm.runs) for arm in found.arms) == [1, 1, 1] and len({arm.label for arm in found.arms}) == 3
    assert len(found.warnings) == 1 and "samples a problem" in found.warnings[0]


def test_an_old_evaluation_says_that_it_does_not_know(tmp_path):
    write_run(tmp_path / "a", steps=2)
    old = {name: value for name, value in evaluation(0.5).items() if name != "about"}
    (tmp_path / "a" / "eval" / "eval.json").write_text(json.dumps(old))
    text = write_report([tmp_path], tmp_path / "r.html").read_text()
    assert "split not recorded" in text and "of an earlier version" in text


def test_curves_of_other_data_are_a_warning(tmp_path):
    for name, split in (("a", "test"), ("b", "hard")):
        write_run(tmp_path / name, name=name, steps=2, metrics={"eval/pass@1": [0.1, 0.2]}, data__eval_split=split)
    found = evaluations.curve_warnings(group_runs(find_runs([tmp_path])), "rl")
    assert len(found) == 1 and "data.eval_split (behind eval/) is test in a; hard in b" in found[0]
