"""From token ids to rewards and validity."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lgrpo.config import DataConfig, ExperimentConfig
from lgrpo.data import prompts
from lgrpo.rewards.score import completion_texts, score
from lgrpo.types import Finish, Rollout

K = 3


def rollout_of(tokenizer, rows: list[tuple[str, Finish]], width: int = 16) -> Rollout:
    """A rollout whose emitted ids spell the given texts; slots after them hold what would be a right answer if masks were ignored."""
    ids = np.zeros((len(rows), width, K), np.int32)
    ids[:] = tokenizer.id_of("7")
    mask = np.zeros((len(rows), width), bool)
    for n, (text, _) in enumerate(rows):
        row = tokenizer.encode(text)
        ids[n, : len(row), 0] = row
        mask[n, : len(row)] = True
    zeros = np.zeros(mask.shape, np.float32)
    return Rollout(
        ids=ids, scores=np.full(ids.shape, np.nan), weights=np.full(ids.shape, np.nan), is_latent=np.zeros_like(mask), mask=mask,
        loss_mask=mask, logps=zeros, finish=np.array([f for _, f in rows]), chain_len=np.zeros(len(rows), np.int32), thought=mask.any(1),
    )  # fmt: skip


ROWS = [
    ("5 + 2 </think> #### 7 <eos>", Finish.EOS, 1.0, True, None),
    ("#### 7 <eos>", Finish.EOS, 0.0, True, "no_answer"),  # never stopped thinking: what it thought is not an answer
    ("#### 7 </think> <eos>", Finish.EOS, 0.0, True, "no_answer"),
    ("</think> #### 7 </think> #### 8 <eos>", Finish.EOS, 0.0, True, "wrong"),  # the first end of thinking counts
    ("</think> #### 7", Finish.LENGTH, 1.0, False, None),  # graded, not valid
    ("</think> #### 7 <eos>", Finish.FORCED_EXIT, 1.0, True, None),
    ("</think> #### 7 <eos> #### 8", Finish.EOS, 1.0, True, None),  # nothing after the end counts
    ("", Finish.NAN, 0.0, False, "no_answer"),
    ("</think> #### pens <eos>", Finish.EOS, 0.0, True, "unparsable"),
    ("<eos> </think> #### 7", Finish.LENGTH, 1.0, False, None),  # an end of sequence while thinking is only a surface token
]


def test_rewards_validity_and_error_counts(tokenizer, cfg):
    rollout = rollout_of(tokenizer, [(text, finish) for text, finish, *_ in ROWS])
    scored = score(rollout, ["7"] * len(ROWS), tokenizer, cfg)
    assert scored.rewards.tolist() == [reward for _, _, reward, _, _ in ROWS] and scored.rewards.dtype == np.float32
    assert scored.valid.tolist() == [valid for *_, valid, _ in ROWS] and scored.valid.dtype == bool
    errors = [error for *_, error in ROWS]
    assert scored.errors == {name: errors.count(name) for name in ("wrong", "no_answer", "unparsable", "timeout", "crash")}


def test_rows_belong_to_their_prompts(tokenizer, cfg):
    rollout = rollout_of(tokenizer, [(f"</think> #### {n} <eos>", Finish.EOS) for n in (1, 2, 1, 2, 2, 2)])
    assert score(rollout, ["1", "2"], tokenizer, cfg).rewards.tolist() == [1, 0, 1, 1, 1, 1]
    assert score(rollout, ["1", "1", "2"], tokenizer, cfg).rewards.tolist() == [1, 0, 1, 0, 1, 1]
    for answers in (["1"] * 4, []):
        with pytest.raises(ValueError, match="gold"):
            score(rollout, answers, tokenizer, cfg)


def test_every_end_token_ends_the_text(tokenizer, cfg):
    more = prompts.resolve(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, more_eos=("pens", "<pad>"))), tokenizer)
    rollout = rollout_of(
        tokenizer, [(f"</think> #### 7 {end} #### 8 {other}", Finish.EOS) for end, other in (("<eos>", "pens"), ("pens", "<eos>"))]
    )
    assert [text.strip() for text in completion_texts(rollout, tokenizer, more)] == ["#### 7", "#### 7"]


def test_eos_exactly_at_the_limit_is_valid(tokenizer, cfg):
    text = "</think> #### 7 <eos>"
    scored = score(rollout_of(tokenizer, [(text, Finish.EOS)], width=len(tokenizer.encode(text))), ["7"], tokenizer, cfg)
    assert scored.valid.all() and scored.rewards.all()


def test_an_end_of_thinking_in_several_tokens_is_cut_off_whole(tokenizer):
    cfg = prompts.resolve(ExperimentConfig(data=DataConfig(think_end="}/")), tokenizer)
    rollout = rollout_of(tokenizer, [("5 } / #### 7 <eos>", Finish.EOS), ("5 } #### 7 <eos>", Finish.EOS), ("5 / 7 <eos>", Finish.EOS)])
    assert completion_texts(rollout, tokenizer, cfg) == ["#### 7", "#### 7", None]


def test_ids_beyond_the_tokenizer_have_no_text(tokenizer, cfg):
    rollout = rollout_of(tokenizer, [("</think> #### 7 7 <eos>", Finish.EOS)])
    rollout.ids[0, 3, 0] = tokenizer.vocab_size + 5  # a padded row of the embedding table
    assert completion_texts(rollout, tokenizer, cfg) == ["#### 7"]
