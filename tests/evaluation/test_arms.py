"""What the thinking carries: thinking cut after n steps, answers cut after n tokens, and what becomes of both in an evaluation."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from lgrpo.data.pipeline import prompt_batches
from lgrpo.evaluation import counterfactual, evaluate
from lgrpo.evaluation.measure import sample, within
from lgrpo.evaluation.passes import UNDISTURBED, plan
from lgrpo.latent.intervene import Kind
from lgrpo.latent.rollout import empty_record
from lgrpo.types import Finish, PromptBatch


def change(cfg, **evaluation):
    return dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, **evaluation))


def in_mode(cfg, mode, length=12):
    rollout = dataclasses.replace(cfg.rollout, mode=mode, max_new_tokens=length)
    return cfg if mode == "latent" else dataclasses.replace(cfg, rollout=rollout)


@pytest.fixture(scope="module")
def policy(params, tokenizer):
    """The tiny model with an end of thinking that is likely, so that thinking ends by itself at different steps."""
    return {**params, "unembed": params["unembed"].at[:, tokenizer.id_of("</think>")].multiply(4.0)}


@pytest.fixture(scope="module", params=["latent", "explicit"])
def case(request, policy, cfg, tokenizer, mesh):
    """(config, prompts, rollout with thinking cut after n steps, undisturbed rollout)."""
    mode = in_mode(cfg, request.param)
    batch = prompt_batches(mode, tokenizer, "test", batch=8)[0][0]
    with jax.set_mesh(mesh):
        free = sample(policy, mode, mesh, UNDISTURBED, batch)

    def cut(kept):
        with jax.set_mesh(mesh):
            return sample(policy, mode, mesh, UNDISTURBED, batch, 0, counterfactual.build(Kind.CUT, free, batch.uid, kept))

    return mode, batch, cut, free


def same(a, b, rows):
    for name in ("ids", "mask", "loss_mask", "is_latent", "finish", "chain_len", "thought"):
        np.testing.assert_array_equal(getattr(a, name)[rows], getattr(b, name)[rows], err_msg=name)


def test_a_cut_that_reaches_no_thought_changes_nothing_and_a_shorter_one_keeps_the_beginning(case):
    cfg, _, cut, free = case
    lengths = np.asarray(free.chain_len)
    assert len(set(lengths.tolist())) > 1 and free.thought.any()
    kept = int(np.sort(lengths)[2])
    found = cut(kept)
    untouched = (lengths <= kept) & free.thought  # also those of exactly this length, which are not marked as forced
    assert untouched.any() and not untouched.all()
    same(found, free, untouched)
    for n in np.flatnonzero(~untouched):
        np.testing.assert_array_equal(found.ids[n, :kept], free.ids[n, :kept])
        assert found.tokens[n, kept] == cfg.data.think_end_id and not found.loss_mask[n, kept] and found.loss_mask[n, :kept].all()
        assert found.chain_len[n] == kept and found.thought[n] and found.forced[n]
        assert found.finish[n] in (Finish.FORCED_EXIT, Finish.LENGTH)
    same(cut(cfg.rollout.max_new_tokens), free, slice(None))


@pytest.mark.parametrize("case", ["explicit"], indirect=True)  # latents are no tokens of a prompt; test_intervene.py replays their inputs
def test_after_a_cut_the_answer_is_that_to_a_prompt_which_holds_the_kept_thoughts(case, policy, mesh):
    """An oracle for chains of tokens: the same model asked with prompt, n tokens of the chain and the end of thinking as its prompt."""
    cfg, batch, cut, free = case
    kept = 2
    found = cut(kept)
    more = np.concatenate([free.tokens[:, :kept], np.full((8, 1), cfg.data.think_end_id)], axis=1)
    rows = np.flatnonzero(free.chain_len >= kept)
    longer = PromptBatch(
        np.concatenate([batch.tokens, more], axis=1), np.concatenate([batch.mask, np.ones(more.shape, bool)], axis=1), batch.uid
    )
    with jax.set_mesh(mesh):
        answers = sample(policy, cfg, mesh, UNDISTURBED, longer)
    assert len(rows) > 2
    length = cfg.rollout.max_new_tokens - kept - 1
    for n in rows:
        ends = np.flatnonzero(answers.tokens[n, :length] == cfg.data.eos_id)
        length_n = int(ends[0]) + 1 if len(ends) else length
        np.testing.assert_array_equal(found.tokens[n, kept + 1 : kept + 1 + length_n], answers.tokens[n, :length_n])


def test_an_answer_is_cut_after_exactly_the_budget(cfg):
    """Rows: an answer of 2 tokens and its end; one that the limit cut; one that never ended its thinking."""
    chain, length = np.array([3, 3, 8]), 8
    total = np.array([7, 8, 8])
    mask = np.arange(length) < total[:, None]
    record = jax.device_get(empty_record(3, dataclasses.replace(cfg.rollout, max_new_tokens=length)))
    finish = np.array([Finish.EOS, Finish.LENGTH, Finish.LENGTH], np.int32)
    record = record.replace(mask=mask, loss_mask=mask, chain_len=chain, thought=np.array([True, True, False]), finish=finish)
    for budget, answers, ends in (
        (1, [1, 1, 0], [Finish.LENGTH] * 3),
        (2, [2, 2, 0], [Finish.LENGTH] * 3),
        (3, [3, 3, 0], [Finish.EOS, Finish.LENGTH, Finish.LENGTH]),  # the end of sequence was the third token
        (4, [3, 4, 0], [Finish.EOS, Finish.LENGTH, Finish.LENGTH]),
        (0, [3, 4, 0], [Finish.EOS, Finish.LENGTH, Finish.LENGTH]),
    ):
        found = within(record, budget)
        assert found.answer_len.tolist() == answers and found.finish.tolist() == ends, budget
        assert found.mask[2].all() and not (found.loss_mask & ~found.mask).any()


@pytest.fixture(scope="module", params=["latent", "explicit"])
def evaluated(request, policy, cfg, tokenizer, mesh):
    """(config, result) with arms and a curve."""
    wide = change(in_mode(cfg, request.param), arms=True, curve=(0, 1, 9) if request.param == "explicit" else (0, 1, 4), answer_budget=2)
    with jax.set_mesh(mesh):
        return wide, evaluate.evaluate(policy, wide, tokenizer, mesh, full=True)


def by_uid(result, name):
    return {row["uid"]: {k: v for k, v in row.items() if k != "pass"} for row in result.rows if row["pass"] == name}


def test_arms_and_curve_agree_where_they_are_one_thing(evaluated, policy, tokenizer, mesh):
    cfg, result = evaluated
    arms, curve = result.compared["arms"], result.compared["curve"]
    latent = cfg.rollout.mode == "latent"
    assert list(arms) == ["free", "forced", "floor", *["hardened"] * latent] and list(curve) == [str(kept) for kept in cfg.evaluation.curve]
    assert curve["0"] == arms["floor"] and arms["floor"]["chain_tokens"]["value"] == 0
    names = [how.name for how in plan(cfg, full=True)]
    assert len(names) == len(set(names)) == 2 + 2 + latent + 2  # the floor is made once
    free, forced, whole = (
        by_uid(result, name) for name in ("noise_free", "kept=all,answer=2", f"kept={cfg.evaluation.curve[-1]},answer=2")
    )
    reached = {uid for uid, row in free.items() if row["chain_tokens"] <= cfg.evaluation.curve[-1]}
    assert reached and {uid: whole[uid] for uid in reached} == {uid: forced[uid] for uid in reached}
    assert any(row["answer_tokens"] > 2 for row in free.values())
    for uid, row in forced.items():
        if not latent:
            assert row["raw"] == tokenizer.decode(tokenizer.encode(free[uid]["raw"])[: row["completion_tokens"]])
        assert row["answer_tokens"] == min(2, free[uid]["answer_tokens"]) and row["chain"] == free[uid]["chain"]
        assert row["finish"] == (free[uid]["finish"] if free[uid]["answer_tokens"] <= 2 else "LENGTH")
    unlimited = change(cfg, answer_budget=0, curve=())
    with jax.set_mesh(mesh):
        again = evaluate.evaluate(policy, unlimited, tokenizer, mesh, full=True)
    assert by_uid(again, "kept=all,answer=all") == by_uid(again, "noise_free") == free
    assert again.compared["arms"]["forced"]["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_effects_are_paired_by_problem(evaluated):
    cfg, result = evaluated
    free, floor = by_uid(result, "noise_free"), by_uid(result, "kept=0,answer=2")
    found = result.compared["arms"]["floor"]
    change = np.mean([floor[uid]["correct"] - free[uid]["correct"] for uid in free])
    assert found["change"]["value"] == pytest.approx(change) and found["accuracy"]["value"] == np.mean(
        [r["correct"] for r in floor.values()]
    )
    assert found["truncated_frac"]["value"] == np.mean([r["finish"] == "LENGTH" for r in floor.values()])
    text = evaluate.table(result)
    assert "arm " in text and "steps kept" in text and ("hardened" in text) == (cfg.rollout.mode == "latent")


def test_arms_are_added_to_a_finished_evaluation(policy, cfg, tokenizer, mesh, tmp_path):
    with jax.set_mesh(mesh):
        before = evaluate.evaluate(policy, cfg, tokenizer, mesh, full=True, folder=tmp_path)
        times = {file: file.stat().st_mtime_ns for file in (tmp_path / "shards").iterdir()}
        wide = change(cfg, arms=True, curve=(1,), answer_budget=2)
        after = evaluate.evaluate(policy, wide, tokenizer, mesh, full=True, folder=tmp_path)
        other = evaluate.evaluate(policy, change(wide, answer_budget=3), tokenizer, mesh, full=True, folder=tmp_path)
    assert times and all(file.stat().st_mtime_ns == time for file, time in times.items())
    assert after.clean == before.clean and before.compared == {}
    assert other.compared["arms"]["forced"]["answer_tokens"] != after.compared["arms"]["forced"]["answer_tokens"]
    evaluate.write_result(other, tmp_path, {"answer_budget": 3})
    saved = json.loads((tmp_path / "eval.json").read_text())
    assert set(saved["arms"]) == {"free", "forced", "floor", "hardened"} and set(saved["curve"]) == {"1"} and saved["counterfactual"] == {}
