"""Whole evaluations of a tiny random model: chunks, sweep, resuming, suites, comparison, the files that are written."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from lgrpo import __main__ as cli
from lgrpo.config import AnswerConfig
from lgrpo.config.validate import validate
from lgrpo.data.pipeline import prompt_batches
from lgrpo.errors import UserError
from lgrpo.evaluation import compare, evaluate, measure
from lgrpo.evaluation.about import find_weights, settled
from lgrpo.evaluation.pass_at_k import bootstrap_weights
from lgrpo.evaluation.passes import plan
from lgrpo.evaluation.shards import Shards, params_digest, read_rows
from lgrpo.evaluation.suite import BENCHMARKS, benchmark_config, suite_names
from lgrpo.evaluation.summary import columns, metric_rows, summarise
from lgrpo.models.decoder import compute_params
from lgrpo.rewards.grade import Verdict

PROBLEMS = 11  # as in conftest.py


def change(cfg, **evaluation):
    return dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, **evaluation))


@pytest.fixture(scope="module")
def wide(cfg):
    return change(cfg, noise_sweep=(0.0, 1.0), counterfactual=True)


@pytest.fixture(scope="module")
def run_it(params, tokenizer, mesh):
    def go(cfg, **options):
        with jax.set_mesh(mesh):
            return evaluate.evaluate(params, cfg, tokenizer, mesh, **options)

    return go


@pytest.fixture(scope="module")
def result(run_it, wide):
    return run_it(wide, full=True)


def rows_of(result, name):
    return [{k: v for k, v in row.items() if k not in ("pass", "noise_scale")} for row in result.rows if row["pass"] == name]


def test_every_problem_has_its_samples_once(result):
    sampled = [(row["uid"], row["sample"]) for row in result.rows if row["pass"] == "sampled"]
    assert sorted(sampled) == [(uid, s) for uid in range(PROBLEMS) for s in range(4)]
    assert result.problems == PROBLEMS and len(rows_of(result, "noise_free")) == PROBLEMS
    assert set(result.compared) == {"counterfactual"}
    assert set(result.compared["counterfactual"]) == {"none", "shuffled", "reordered", "zeroed", "repeated", "hardened", "dropped"}


def test_numbers_and_names(result):
    for name, numbers in (("noise_free", result.clean), ("sampled", result.sampled)):
        rows = rows_of(result, name)
        by_uid = [[row for row in rows if row["uid"] == uid] for uid in range(PROBLEMS)]
        wanted = {length: np.mean([row[length] for row in rows]) for length in ("latent_steps", "chain_tokens", "answer_tokens")}
        wanted |= {"pass@1": np.mean([row["correct"] for row in rows])}
        wanted |= {"truncated_frac": np.mean([row["finish"] == "LENGTH" for row in rows])}
        wanted |= {
            "invalid_frac": np.mean([row["finish"] not in ("EOS", "FORCED_EXIT") for row in rows]),
            "forced_frac": np.mean([row["forced"] for row in rows]),
        }
        wanted |= {f"pass@{len(by_uid[0])}": np.mean([any(row["correct"] for row in some) for some in by_uid])}
        for metric, value in wanted.items():
            assert numbers[metric]["value"] == pytest.approx(value), (name, metric)
    assert {"maj@2", "maj@4", "latent_share", "truncated_frac", "forced_frac", "grade/wrong", "grade/timeout"} <= set(result.sampled)
    assert "pass@2" not in result.clean and "maj@1" not in result.sampled
    assert 2 <= result.clean["latent_steps"]["value"] <= 4
    text = evaluate.table(result)
    assert "pass@4" in text and "hardened" in text and "grade/" not in text


def test_the_sweep_repeats_the_sampled_pass_at_its_own_scale(result):
    assert rows_of(result, "noise=1") == rows_of(result, "sampled") != rows_of(result, "noise=0")
    assert result.sweep["1"] == result.sampled


def test_one_compilation_for_all_scales(run_it, cfg, result):
    before = measure._rollout._cache_size()
    run_it(change(cfg, noise_sweep=(0.1, 0.7, 2.0)), full=True)
    assert measure._rollout._cache_size() == before


def test_chunks_do_not_change_samples(run_it, cfg, result):
    whole = run_it(change(cfg, sample_chunk=0))
    texts = [{(r["uid"], r["sample"]): r["text"] for r in some.rows if r["pass"] == "sampled"} for some in (whole, result)]
    assert texts[0] == texts[1]
    assert whole.sweep == {} and whole.compared == {}  # what training evaluates


class KilledError(Exception):
    pass


def test_a_killed_evaluation_goes_on(run_it, wide, result, tmp_path, monkeypatch):
    put, count = Shards.put, []

    def limited(self, key, rows):
        if len(count) >= 9:
            raise KilledError
        count.append(key)
        put(self, key, rows)

    monkeypatch.setattr(Shards, "put", limited)
    with pytest.raises(KilledError):
        run_it(wide, full=True, folder=tmp_path)
    monkeypatch.setattr(Shards, "put", lambda self, key, rows: (count.append(key), put(self, key, rows)))
    again = run_it(wide, full=True, folder=tmp_path)
    assert len(count) == len(set(count)) == 2 * (1 + 3 * 2 + 6)  # nothing was done twice
    assert again.rows == result.rows and again.compared == result.compared
    monkeypatch.setattr(evaluate, "sample", None)  # a finished one computes nothing
    assert run_it(wide, full=True, folder=tmp_path).rows == result.rows


def test_results_of_something_else_are_refused(run_it, cfg, params, tokenizer, mesh, tmp_path):
    run_it(cfg, folder=tmp_path)
    with pytest.raises(UserError, match=r"evaluation.samples: 4 there, 2 now"):
        run_it(change(cfg, samples=2), folder=tmp_path)
    with pytest.raises(UserError, match="problems"):
        run_it(change(cfg, problems=5), folder=tmp_path)
    other = {**params, "embed": params["embed"].at[3, 1].add(1e-3)}
    with pytest.raises(UserError, match="weights"), jax.set_mesh(mesh):
        evaluate.evaluate(other, cfg, tokenizer, mesh, folder=tmp_path)
    (tmp_path / "shards" / "sampled-00000-00000.jsonl").write_text('{"uid": 0')
    with pytest.raises(UserError, match="remove it"):
        run_it(cfg, folder=tmp_path)


# Settings of an evaluation that its rows depend on, and those that they do not: the problems are compared as such.
OTHER = {
    "samples": 8,
    "sample_chunk": 1,
    "batch": 4,
    "noise_scale": 0.3,
    "thinking": False,
    "train_answer": False,
    "answer": AnswerConfig(temperature=0.3),
}
APART = {"every": 7, "problems": 3, "noise_sweep": (0.5,), "counterfactual": True, "closure": 3, "bootstrap": 7}
APART |= {"arms": True, "curve": (1, 2), "answer_budget": 3}


def test_every_setting_is_part_of_an_evaluations_identity_or_named_here(cfg, params):
    assert OTHER.keys() | APART.keys() == {f.name for f in dataclasses.fields(cfg.evaluation)}

    def identity(cfg):
        return json.loads(json.dumps(evaluate._identity(params_digest(params), cfg, [])))

    for name, value in OTHER.items():
        assert identity(change(cfg, **{name: value})) != identity(cfg), name
    for name, value in APART.items():
        assert identity(change(cfg, **{name: value})) == identity(cfg), name
    longer = dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, max_new_tokens=9))
    grader = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, grader="official"))
    assert len({str(identity(c)) for c in (cfg, longer, grader, dataclasses.replace(cfg, seed=1))}) == 4


def test_a_pass_samples_as_its_settings_say(cfg):
    """Noise 0 is a scale and not `as in training`; answers by training's sampler or by the evaluation's own; greedy without noise."""
    scales = {-1.0: cfg.rollout.latent.noise_scale, 0.0: 0.0, 0.3: 0.3}
    assert scales[-1.0] > 0
    for given, used in scales.items():
        assert [how.noise_scale for how in plan(change(cfg, noise_scale=given), full=False)] == [0.0, used]
    greedy, noisy = plan(cfg, full=False)
    own = change(cfg, train_answer=False, answer=AnswerConfig(temperature=0.3))
    assert measure.static_config(own, noisy).rollout.answer == AnswerConfig(temperature=0.3)
    assert (
        measure.static_config(change(own, train_answer=True), noisy).rollout.answer == cfg.rollout.answer != AnswerConfig(temperature=0.3)
    )
    assert measure.static_config(own, greedy).rollout.answer.sampler == "greedy"
    assert measure.static_config(own, noisy).rollout.group_size == noisy.chunk


def test_the_digest_of_weights():
    one = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
    digest = params_digest(jax.tree.map(jax.numpy.asarray, one))
    assert digest == params_digest(jax.tree.map(jax.numpy.asarray, one)) and len(digest) == 16
    swapped = {**one, "a": one["a"][::-1].copy()}
    half = jax.tree.map(lambda x: jax.numpy.asarray(x, jax.numpy.bfloat16), one)
    assert len({digest, params_digest(jax.tree.map(jax.numpy.asarray, swapped)), params_digest(half)}) == 3


def fake_rows(correct, finish, lengths):
    """Rows of one problem per list."""
    return [
        {"uid": u, "sample": s, "correct": bool(c), "answer": str(c), "category": "correct" if c else "wrong", "finish": f, "forced": n == 4 or n == 2,
         "chain_tokens": n, "latent_steps": n, "answer_tokens": 1, "completion_tokens": n + 2}
        for u, (cs, fs, ns) in enumerate(zip(correct, finish, lengths, strict=True))
        for s, (c, f, n) in enumerate(zip(cs, fs, ns, strict=True))
    ]  # fmt: skip


def test_lengths_over_all_and_over_finished():
    rows = fake_rows([[1, 0], [0, 0]], [["EOS", "LENGTH"], ["LENGTH", "FORCED_EXIT"]], [[2, 10], [10, 4]])
    found = summarise(rows[::-1], bootstrap_weights(2, 50))
    value = {name: interval["value"] for name, interval in found.items()}
    assert value["latent_steps"] == 6.5 and value["latent_steps_finished"] == 3.0
    assert value["truncated_frac"] == 0.5 and value["forced_frac"] == 0.5 and value["invalid_frac"] == 0.5
    assert value["latent_share"] == 26 / 34 and value["pass@1"] == 0.25 and value["pass@2"] == 0.5 and value["grade/wrong"] == 0.75
    none = summarise(fake_rows([[0]], [["LENGTH"]], [[3]]), bootstrap_weights(1, 5))
    assert "latent_steps_finished" not in none
    assert [row["metric"] for row in metric_rows({"x": found})][:2] == ["pass@1", "pass@2"]
    with pytest.raises(ValueError, match="whole number"):
        columns(rows[:-1])


def test_suites_resolve_names(cfg):
    assert suite_names(["gsm8k"]) == ["gsm8k"] and "dapo_math_17k" not in BENCHMARKS
    missing = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, source="jsonl"))
    with pytest.raises(UserError, match=r"gsm8k_test\.jsonl does not exist"):
        benchmark_config(missing, "gsm8k")
    assert benchmark_config(missing, "svamp").data.eval_split == "svamp_test"
    assert suite_names(["low"]) == ["gsm8k_aug", "gsm_hard", "svamp", "multiarith"]
    assert suite_names(["svamp", "high", "svamp"]) == ["svamp", "math500", "aime24", "aime25", "gpqa_diamond"]
    with pytest.raises(UserError, match="did you mean svamp"):
        suite_names(["svmap"])
    registered = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, source="word_problems"))
    assert benchmark_config(registered, "gpqa_diamond").data.grader == "choice"
    assert benchmark_config(registered, "svamp").data.eval_split == "svamp/test"
    numeric = dataclasses.replace(cfg, data=dataclasses.replace(registered.data, grader="numeric"))
    assert {benchmark_config(numeric, name).data.grader for name in BENCHMARKS} == {"numeric"}


@pytest.fixture
def stored(monkeypatch, params, cfg):
    """`run` finds these weights instead of a checkpoint."""
    monkeypatch.setattr(evaluate, "check_source", lambda *_: None)
    monkeypatch.setattr(evaluate, "load_weights", lambda path, target, best: (params, 7 if best else 40))
    monkeypatch.setattr(evaluate, "find_weights", lambda cfg, workdir, which: workdir)


def test_a_suite_from_the_command_line_and_its_comparison(stored, cfg, data_path, tmp_path, monkeypatch, capsys):
    module = tmp_path / "x.py"
    unresolved = dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, vocab_size=0),
        data=dataclasses.replace(cfg.data, think_end_id=-1, eos_id=-1, source="word_problems", path=""),
    )
    module.write_text(f"from lgrpo.config import *\ndef get_config():\n    return {unresolved!r}\n")
    base = ["eval", str(module), "--workdir", str(tmp_path), "--data.path", str(data_path)]
    base += ["--data.source", "jsonl", "--suite", "svamp", "multiarith"]
    assert cli.run([*base, "--out", "a"]) == 0
    assert cli.run([*base, "--out", "b", "--evaluation.noise-scale", "0.3", "--evaluation.noise-sweep", "0.1", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "== svamp" in printed and "mean" in printed
    saved = json.loads((tmp_path / "b" / "svamp" / "eval.json").read_text())
    assert set(saved["sweep"]) == {"0.1", "0.5"} and saved["about"]["left_out"] == 0
    assert "pass@1" in json.loads((tmp_path / "b" / "suite.json").read_text())["sampled"]
    rows = read_rows(tmp_path / "a" / "svamp" / "eval.jsonl")
    assert len(rows) == PROBLEMS * 5 and {"text", "gold", "answer", "category", "finish"} <= set(rows[0])
    assert cli.run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    table = capsys.readouterr().out
    assert "warning: a and b differ in more than their weights: " in table and "svamp: latent noise: 1.0 and 0.3" in table
    assert compare.warnings(tmp_path / "a", tmp_path / "a") == []
    assert table.count("McNemar") == 2 and table.count("sign test") == 2 and "noise=" not in table
    found = compare.compare(tmp_path / "a" / "svamp", tmp_path / "b" / "svamp" / "eval.jsonl")
    assert [row["pass"] for row in found] == ["noise_free", "sampled"] and found[0]["difference"]["value"] == 0


def test_the_first_line_says_what_is_evaluated(stored, cfg, params, tmp_path, capsys):
    evaluate.run(change(cfg, problems=5), tmp_path)
    line = capsys.readouterr().out.split("\n")[0]
    digest = params_digest(compute_params(params, cfg.model))
    wanted = f"{tmp_path}: checkpoint of step 40, weights {digest}, on jsonl {cfg.data.path}, split test: 5 of {PROBLEMS} problems"
    assert line == wanted
    about = json.loads((tmp_path / "eval" / "eval.json").read_text())["about"]
    assert (about["step"], about["weights"], about["split"], about["noise_scale"], about["thinks_in"]) == (
        40,
        digest,
        "test",
        1.0,
        "latents",
    )
    evaluate.run(cfg, tmp_path, weights="best", out="best")
    assert "checkpoint of step 7" in capsys.readouterr().out


def test_a_workdir_that_is_not_there_is_a_mistake(cfg, tmp_path):
    """A mistyped --workdir does not evaluate the start in its place; --weights init does."""
    (tmp_path / "start" / "checkpoints").mkdir(parents=True)
    from_start = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, init_from=str(tmp_path / "start")))
    with pytest.raises(UserError, match=r"typo: no checkpoints there \(no such folder.*--weights init"):
        evaluate.run(from_start, tmp_path / "typo")
    assert not (tmp_path / "typo").exists()
    with pytest.raises(UserError, match="in its folders start"):
        evaluate.run(cfg, tmp_path)
    assert find_weights(from_start, tmp_path / "new", "init") == tmp_path / "start"
    with pytest.raises(UserError, match=r"train\.init_from is empty"):
        find_weights(cfg, tmp_path, "init")


def test_without_thinking_the_whole_output_is_graded(run_it, cfg, tokenizer, monkeypatch):
    """The prompt opens no thinking, every step is an ordinary token, and what is graded is all text before the end of sequence."""
    seen = []

    def grade(texts, golds, data):
        seen.extend(texts)
        return [Verdict(True, "correct", "1") for _ in texts]

    monkeypatch.setattr(measure, "grade_all", grade)
    plain = change(cfg, thinking=False, noise_sweep=())
    result = run_it(plain)
    assert {row["text"] for row in result.rows} == set(seen) and None not in seen
    for row in result.rows:
        assert row["chain"] == "" and row["chain_tokens"] == row["latent_steps"] == 0
        assert row["answer_tokens"] == row["completion_tokens"]
        assert row["text"] == row["raw"].removesuffix(cfg.data.eos).rstrip() or row["raw"].startswith(row["text"])
    ids = [prompt_batches(c, tokenizer, "test", batch=8)[0][0].tokens[0, -1] for c in (cfg, settled(plain))]
    assert ids[0] == tokenizer.id_of("<think>") != ids[1]
    assert "evaluation.counterfactual" in validate(change(plain, counterfactual=True), device_count=8, kind="eval")[0]


def test_rows_hold_all_that_was_said(run_it, cfg, tokenizer, result):
    """Chain and raw text of every completion; only one that was cut off while it thought has no text."""
    explicit = dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, mode="explicit"))
    for rows in (result.rows, run_it(explicit).rows):
        for row in rows:
            assert row["raw"].startswith(row["chain"]) and len(tokenizer.encode(row["raw"])) <= row["completion_tokens"]
            assert (row["text"] is None) <= (row["finish"] not in ("EOS", "FORCED_EXIT"))
            if row["chain_tokens"] < row["completion_tokens"]:
                assert cfg.data.think_end in row["raw"]


def test_comparisons_that_make_no_sense_are_refused(stored, cfg, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"no eval\.jsonl"):
        compare.compare(tmp_path, tmp_path)
    for name, part in (("a", cfg), ("b", change(cfg, problems=5))):
        evaluate.run(part, tmp_path, out=name)
    with pytest.raises(UserError, match="6 are on one side only"):
        compare.compare(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(sys, "argv", ["lgrpo", "compare", str(tmp_path / "a")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "required: b" in capsys.readouterr().err


def test_problems_that_are_left_out_are_said(stored, cfg, data_path, tmp_path, capsys):
    lines = (data_path / "test.jsonl").read_text().split("\n")[:PROBLEMS]
    long = json.loads(lines[0])
    long["problem"] = " ".join([long["problem"]] * 3)
    (tmp_path / "test.jsonl").write_text("\n".join([*lines[:4], json.dumps(long), *lines[4:]]))
    evaluate.run(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, path=str(tmp_path))), tmp_path, out="some")
    saved = json.loads((tmp_path / "some" / "eval.json").read_text())
    assert saved["about"]["left_out"] == 1 and saved["problems"] == PROBLEMS
    assert f"1 of {PROBLEMS + 1} problems left out" in capsys.readouterr().err
    assert {row["uid"] for row in read_rows(tmp_path / "some" / "eval.jsonl")} == set(range(PROBLEMS + 1)) - {4}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"noise_sweep": (0.5, -1.0)}, "noise_sweep"),
        ({"noise_sweep": (0.5, 0.5)}, "each once"),
        ({"sample_chunk": 3}, "sample_chunk=3"),
        ({"curve": (1, 1)}, "each once"),
        ({"curve": (0, 7)}, "leave room in rollout.max_new_tokens=8"),
        ({"thinking": False, "arms": True}, "evaluation.arms=True: looks at the thinking"),
    ],
)
def test_settings_are_checked(cfg, settings, says):
    found = validate(change(cfg, **settings), device_count=8, kind="eval")
    assert len(found) == 1 and says in found[0]
    explicit = dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, mode="explicit"))
    assert "counterfactual" in validate(change(explicit, counterfactual=True), device_count=8, kind="eval")[0]
