"""Batches: content, order, shards, state and refusals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest

from lgrpo.data import prompts
from lgrpo.data.pipeline import describe_stream, prompt_batches, prompt_stream, sft_stream
from lgrpo.data.registry import DATA_SETS, Split
from lgrpo.data.sources import load_records
from lgrpo.data.survey import survey
from lgrpo.errors import UserError


def record(i: int, cot: str = "<<1+2=3>>", problem: str | None = None) -> str:
    return json.dumps({"problem": problem or f"Tom has {i} pens.", "cot": cot, "answer": str(i)})


def uids(stream, count):
    return [next(stream)[0].uid.tolist() for _ in range(count)]


def replaced(cfg, section: str, **fields):
    return dataclasses.replace(cfg, **{section: dataclasses.replace(getattr(cfg, section), **fields)})


def test_prompts_are_the_records_padded_on_the_left(cfg, tokenizer):
    records = load_records(cfg.data, "train")
    batch, gold = next(prompt_stream(cfg, tokenizer, "train", batch=16))
    assert batch.tokens.shape == batch.mask.shape == (16, cfg.data.max_prompt)
    assert batch.tokens.dtype == batch.uid.dtype == np.int32 and batch.mask.dtype == bool
    for tokens, mask, uid, answer in zip(batch.tokens, batch.mask, batch.uid, gold, strict=True):
        ids = tokenizer.encode(prompts.render_prompt(records[uid]["problem"], "plain"))
        assert tokens[mask].tolist() == ids and answer == records[uid]["answer"]
        assert mask[-len(ids) :].all() and mask.sum() == len(ids)
        assert (tokens[~mask] == tokenizer.id_of("<pad>")).all()


def test_an_epoch_shows_each_record_once_and_the_next_another_order(cfg, tokenizer):
    stream = prompt_stream(cfg, tokenizer, "valid", batch=30)  # 200 records: 6 batches an epoch, 20 records left out
    first, second = uids(stream, 6), uids(stream, 6)
    for epoch in (first, second):
        assert len(set(itertools.chain(*epoch))) == 180
    assert first != second


def test_order_depends_on_the_seed_alone(cfg, tokenizer):
    def order(seed, **kwargs):
        return uids(prompt_stream(dataclasses.replace(cfg, seed=seed), tokenizer, "train", batch=8, **kwargs), 5)

    assert order(0) == order(0) != order(1)
    halves = [order(0, shard=(i, 2)) for i in range(2)]
    quarters = [order(0, shard=(i, 4)) for i in range(4)]
    for step, whole in enumerate(order(0)):
        assert halves[0][step] + halves[1][step] == whole
        assert list(itertools.chain(*(q[step] for q in quarters))) == whole


@pytest.mark.parametrize("steps", [0, 3, 6, 11])  # the start, in an epoch, at its end, in the next one
def test_state_continues_where_it_was_taken(cfg, tokenizer, steps):
    stream = prompt_stream(cfg, tokenizer, "valid", batch=30)
    uids(stream, steps)
    state = json.loads(json.dumps(stream.get_state()))
    ahead = uids(stream, 9)
    other = prompt_stream(cfg, tokenizer, "valid", batch=30, shard=(0, 2))
    other.set_state(state)
    assert uids(other, 9) == [batch[:15] for batch in ahead]
    stream.set_state(state)  # also backwards, in place
    assert uids(stream, 9) == ahead


def test_state_of_another_stream_is_refused(cfg, tokenizer):
    state = prompt_stream(cfg, tokenizer, "valid", batch=30).get_state()
    for other in (
        prompt_stream(cfg, tokenizer, "test", batch=30),
        prompt_stream(cfg, tokenizer, "valid", batch=20),
        prompt_stream(dataclasses.replace(cfg, seed=1), tokenizer, "valid", batch=30),
    ):
        with pytest.raises(UserError, match="does not fit"):
            other.set_state(state)
    with pytest.raises(UserError, match="does not fit"):
        prompt_stream(cfg, tokenizer, "valid", batch=30).set_state({})


def test_unshuffled_streams_end(cfg, tokenizer):
    seen = [batch.uid.tolist() for batch, _ in prompt_stream(cfg, tokenizer, "valid", batch=64, shuffle=False)]
    assert [len(s) for s in seen] == [64, 64, 64, 8] and list(itertools.chain(*seen)) == list(range(200))


def test_evaluation_batches_have_one_shape_and_mark_what_is_real(cfg, tokenizer):
    batches = prompt_batches(cfg, tokenizer, "test", batch=48, limit=100)
    assert [real.sum() for *_, real in batches] == [48, 48, 4]
    assert all(b.tokens.shape == (48, cfg.data.max_prompt) and len(gold) == 48 for b, gold, _ in batches)
    assert list(itertools.chain(*(b.uid[real].tolist() for b, _, real in batches))) == list(range(100))
    assert sum(real.sum() for *_, real in prompt_batches(cfg, tokenizer, "test", batch=64)) == 200
    (batch, gold, real), *rest = prompt_batches(cfg, tokenizer, "test", batch=8, limit=3)
    assert not rest and batch.uid.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] and gold[3] == gold[0] and real.tolist() == [True] * 3 + [False] * 5


def test_sft_rows_spell_the_record(cfg, tokenizer):
    records = load_records(cfg.data, "train")
    batch = next(sft_stream(cfg, tokenizer, "train", batch=16))
    widths = {"prompt": cfg.data.max_prompt, "chain": cfg.sft.max_chain, "answer": cfg.sft.max_answer}
    for part, width in widths.items():
        assert batch[f"{part}_tokens"].shape == batch[f"{part}_mask"].shape == (16, width)
        assert batch[f"{part}_tokens"].dtype == np.int32 and batch[f"{part}_mask"].dtype == bool
    for n, uid in enumerate(batch["uid"]):
        text = {part: tokenizer.decode(batch[f"{part}_tokens"][n][batch[f"{part}_mask"][n]]).replace(" ", "") for part in widths}
        assert text["prompt"] == records[uid]["problem"].replace(" ", "") + "<think>"
        assert text["chain"] == records[uid]["cot"].replace(" ", "")
        assert text["answer"] == f"####{records[uid]['answer']}<eos>"
        for part in ("chain", "answer"):
            mask = batch[f"{part}_mask"][n]
            assert mask[: mask.sum()].all()  # padded on the right


@pytest.mark.parametrize("stage", ["explicit", "latent", "encoder"])
def test_the_answer_after_the_thinking_is_final_or_comes_with_its_solution(jsonl_cfg, tokenizer, stage):
    """By default a solution in the file is no part of any target; only the setting brings it in, and then the final answer still ends it."""
    line = json.dumps(json.loads(record(3)) | {"solution": "Tom has 3 pens ."})
    cfg = replaced(jsonl_cfg(line, line), "sft", stage=stage)
    said = {}
    for kind in ("final", "solution"):
        row = next(sft_stream(replaced(cfg, "sft", answer=kind, max_answer=12), tokenizer, "train", batch=1))
        said[kind] = tokenizer.decode(row["answer_tokens"][0][row["answer_mask"][0]])
        assert tokenizer.decode(row["chain_tokens"][0][row["chain_mask"][0]]).replace(" ", "") == "<<1+2=3>>"
    assert said == {"final": "#### 3 <eos>", "solution": "Tom has 3 pens . #### 3 <eos>"}


def test_a_missing_solution_is_refused_and_a_long_one_counts(jsonl_cfg, tokenizer):
    line = json.dumps(json.loads(record(3)) | {"solution": "Tom has 3 pens ."})
    cfg = replaced(jsonl_cfg(line, record(4), record(5)), "sft", answer="solution")
    with pytest.raises(UserError, match=r"sft\.answer=solution: 2 of 3 train records have no text in `solution` \(the first: record 1\)"):
        sft_stream(cfg, tokenizer, "train", batch=1)
    assert len(next(prompt_stream(cfg, tokenizer, "train", batch=3))[1]) == 3  # RL has no targets
    with pytest.raises(UserError, match=r"sft\.max_answer.*: 4"):
        sft_stream(replaced(jsonl_cfg(line), "sft", answer="solution", max_answer=4), tokenizer, "train", batch=1)


def test_sft_state_round_trip(cfg, tokenizer):
    stream = sft_stream(cfg, tokenizer, "valid", batch=32)
    next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    ahead = [next(stream) for _ in range(7)]
    stream.set_state(state)
    for expected in ahead:
        np.testing.assert_equal(next(stream), expected)


def test_several_end_tokens_open_the_answer(jsonl_cfg, tokenizer):
    cfg = prompts.resolve(jsonl_cfg(record(3), think_end="}/", think_end_id=-1), tokenizer)
    row = next(sft_stream(cfg, tokenizer, "train", batch=1))
    assert tokenizer.token_of(cfg.data.think_end_id) == "}"
    assert tokenizer.decode(row["answer_tokens"][0][row["answer_mask"][0]]) == "/ #### 3 <eos>"


def test_of_several_end_tokens_the_first_is_the_target(jsonl_cfg, tokenizer):
    cfg = prompts.resolve(jsonl_cfg(record(3), more_eos=("pens",)), tokenizer)
    row = next(sft_stream(cfg, tokenizer, "train", batch=1))
    assert tokenizer.decode(row["answer_tokens"][0][row["answer_mask"][0]]) == "#### 3 <eos>"
    with pytest.raises(UserError, match="chain or answer contains"):
        sft_stream(prompts.resolve(jsonl_cfg(record(3), more_eos=("=",)), tokenizer), tokenizer, "train", batch=1)


def test_overlong_records_are_dropped_and_counted(jsonl_cfg, tokenizer):
    long = " ".join(["Tom has 3 pens."] * 8)
    lines = [record(1), record(2, problem=long), record(3, cot="<<1+2=3>>" * 3), record(4)]
    cfg = jsonl_cfg(*lines)
    stream = prompt_stream(cfg, tokenizer, "train", batch=3)
    assert stream.dropped == 1 and sorted(next(stream)[0].uid.tolist()) == [0, 2, 3]  # uid stays the position in the file
    assert tokenizer.decode(stream.example.prompt) == "Tom has 1 pens . <think>"
    sft = sft_stream(cfg, tokenizer, "train", batch=2)
    assert list(stream.left_out.values()) == [1, 1] and sorted(sft.left_out) == ["all", *sorted(sft.left_out)[1:]]
    assert sft.dropped == 2 and sorted(next(sft)["uid"].tolist()) == [0, 3]
    strict = replaced(cfg, "data", overlong="error")
    with pytest.raises(UserError, match=r"record 1: prompt has 41 tokens, data\.max_prompt is 32"):
        prompt_stream(strict, tokenizer, "train", batch=1)
    with pytest.raises(UserError, match=r"record 2: chain has 21 tokens, sft\.max_chain is 16"):
        sft_stream(replaced(strict, "data", max_prompt=64), tokenizer, "train", batch=1)
    with pytest.raises(UserError, match="none of the 4 train records fits"):
        prompt_stream(replaced(cfg, "data", max_prompt=5), tokenizer, "train", batch=1)


def test_what_was_left_out_is_said_by_limit(jsonl_cfg, tokenizer):
    long = " ".join(["Tom has 3 pens."] * 8)
    cfg = jsonl_cfg(record(1), record(2, problem=long), record(3, cot="<<1+2=3>>" * 3, problem=long), record(4, cot="<<1+2=3>>" * 3))
    assert prompt_stream(cfg, tokenizer, "train", batch=1).left_out == {"data.max_prompt=32": 2, "all": 2}
    stream = sft_stream(cfg, tokenizer, "train", batch=1)
    assert stream.left_out == {"data.max_prompt=32": 2, "sft.max_chain=16": 2, "sft.max_answer=4": 0, "all": 3}
    assert describe_stream(stream, tokenizer).endswith(
        "1 used, 3 left out (2 longer than data.max_prompt=32, 2 longer than sft.max_chain=16)"
    )
    assert prompt_stream(replaced(cfg, "data", max_prompt=64), tokenizer, "train", batch=1).left_out == {"data.max_prompt=64": 0, "all": 0}


def test_a_text_of_millions_of_characters_is_not_tokenised(jsonl_cfg, tokenizer, monkeypatch):
    """50 MB of text take a tokenizer minutes and gigabytes."""
    seen = []
    encode = type(tokenizer).encode_batch
    monkeypatch.setattr(type(tokenizer), "encode_batch", lambda self, texts: seen.extend(map(len, texts)) or encode(self, texts))
    huge = "pens " * 1_000_000
    cfg = jsonl_cfg(record(1), record(2, problem=huge), record(3, cot=huge), json.dumps({"problem": "Tom", "cot": "1", "answer": huge}))
    stream = sft_stream(cfg, tokenizer, "train", batch=1)
    assert stream.dropped == 3 and next(stream)["uid"].tolist() == [0] and max(seen) < 1000
    told = survey(cfg, tokenizer, pathlib.Path(cfg.data.path) / "train.jsonl", show=1)
    assert "1 by train and eval (prompt too long), 3 by sft" in told and max(seen) < 1000
    assert stream.left_out == {"data.max_prompt=32": 1, "sft.max_chain=16": 1, "sft.max_answer=4": 1, "all": 3}
    strict = replaced(cfg, "data", overlong="error")
    with pytest.raises(UserError, match=r"record 1: prompt has 5000000 characters, data\.max_prompt is 32"):
        prompt_stream(strict, tokenizer, "train", batch=1)


def test_registered_sets_may_have_records_without_a_chain(cfg, tokenizer, monkeypatch, tmp_path):
    rows = [{"problem": f"Tom has {i} pens.", "cot": "" if i == 2 else "<<1+2=3>>", "answer": str(i)} for i in range(4)]
    monkeypatch.setitem(DATA_SETS, "gsm8k", dataclasses.replace(DATA_SETS["gsm8k"], splits={"train": Split((), 4)}))
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = replaced(cfg, "data", source="gsm8k", path=str(tmp_path), data_dir=str(tmp_path / "tfds"))
    stream = sft_stream(cfg, tokenizer, "train", batch=3)
    assert stream.dropped == 1 and describe_stream(stream, tokenizer).endswith("3 used, 1 left out (1 without a chain)")
    assert sorted(next(stream)["uid"].tolist()) == [0, 1, 3]
    assert prompt_stream(cfg, tokenizer, "train", batch=4).dropped == 0
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(json.dumps(row | {"cot": ""}) + "\n" for row in rows))
    with pytest.raises(UserError, match="none of the 4 train records of gsm8k has a chain"):
        sft_stream(cfg, tokenizer, "train", batch=3)


def test_a_target_that_does_not_fit_is_said(jsonl_cfg, tokenizer, capsys):
    cfg = replaced(jsonl_cfg(record(1), record(2), record(3)), "sft", max_answer=3)
    sft_stream(cfg, tokenizer, "train", batch=1)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="none of the 3"):
        sft_stream(replaced(cfg, "sft", max_answer=2), tokenizer, "train", batch=1)
    said = capsys.readouterr().err
    assert said == "warning: data: 3 of 3 train records left out: longer answer than sft.max_answer=2\n"


def test_lengths_at_the_limit_fit(jsonl_cfg, tokenizer):
    cfg = replaced(replaced(jsonl_cfg(record(1)), "data", max_prompt=6, overlong="error"), "sft", max_chain=7, max_answer=3)
    row = next(sft_stream(cfg, tokenizer, "train", batch=1))
    assert row["prompt_mask"].all() and row["chain_mask"].all() and row["answer_mask"].all()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([record(1), record(2, cot="")], r"1 of 2 records have no `cot` \(the first: record 1\)"),
        ([record(1), record(2, cot="<<1+2=3>></think>")], r"record 1: chain or answer contains data\.think_end"),
        ([record(1, cot="<eos>"), record(2)], r"record 0: chain or answer contains"),
        ([record(1), record(2, problem="Tom has 3 zebras.")], r"record 1 has text unknown to the embedded tokenizer.*<unk>"),
    ],
)
def test_records_that_would_spoil_training_are_refused(jsonl_cfg, tokenizer, lines, says):
    with pytest.raises(UserError, match=says):
        sft_stream(jsonl_cfg(*lines), tokenizer, "train", batch=1)


def test_batches_and_shards_that_cannot_be_are_refused(cfg, jsonl_cfg, tokenizer):
    with pytest.raises(UserError, match="batch of 3 from 2"):
        prompt_stream(jsonl_cfg(record(1), record(2)), tokenizer, "train", batch=3)
    for shard in ((0, 3), (2, 2), (-1, 2)):
        with pytest.raises(UserError, match="cannot split"):
            prompt_stream(cfg, tokenizer, "train", batch=8, shard=shard)
    with pytest.raises(UserError, match="short last batch"):
        prompt_stream(cfg, tokenizer, "valid", batch=64, shuffle=False, shard=(0, 2))
    with pytest.raises(ValueError, match="resolve"):
        prompt_stream(replaced(cfg, "data", eos_id=-1), tokenizer, "train", batch=8)
