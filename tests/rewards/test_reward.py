"""The seam of the reward. Breaks when a user's function is told something wrong, fails without a trace, or cannot be found again."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import own_advantages
import own_rewards
import pytest
from test_score import rollout_of

from lgrpo.config import DataConfig
from lgrpo.config.overrides import from_json, load_experiment, parse_overrides, to_json
from lgrpo.errors import UserError
from lgrpo.rewards.reward import correct_and_short, find_reward, rewards_of
from lgrpo.rewards.sample import Sample
from lgrpo.rewards.score import score
from lgrpo.rewards.workers import shared_pool
from lgrpo.types import Finish

ROOT = Path(__file__).parents[2]
SAMPLE = Sample(
    correct=False,
    category="wrong",
    finish="EOS",
    latent_steps=3,
    chain_tokens=4,
    answer_tokens=2,
    completion_tokens=7,
    limit=10,
    forced=False,
)
ROWS = [
    ("5 + 2 </think> #### 7 <eos>", Finish.EOS),
    ("</think> #### 6 <eos>", Finish.EOS),
    ("</think> #### 6", Finish.LENGTH),
    ("#### 7 <eos>", Finish.EOS),
]


def scored(tokenizer, cfg, reward):
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, reward=reward))
    return score(rollout_of(tokenizer, ROWS), ["7"] * len(ROWS), tokenizer, cfg)


def test_a_reward_of_ones_own_sees_text_gold_and_sample(tokenizer, cfg):
    seen = scored(tokenizer, cfg, own_rewards.close)
    np.testing.assert_allclose(seen.rewards, [1.0, 0.25, 0.125, 0.0])
    assert seen.correct.tolist() == [True, False, False, False] and seen.errors["wrong"] == 2


def test_in_workers_it_is_the_same(tokenizer, cfg, monkeypatch):
    monkeypatch.chdir(Path(own_rewards.__file__).parent)
    try:
        np.testing.assert_allclose(scored(tokenizer, cfg, "own_rewards.py:slow_and_close").rewards, [1.0, 0.25, 0.125, 0.0])
    finally:
        shared_pool.cache_clear()


def test_a_worker_that_hangs_dies_or_errs(tmp_path):
    (tmp_path / "r.py").write_text(
        "import os, time\nfrom lgrpo.rewards.reward import in_workers\n@in_workers\ndef f(text, gold, sample):\n"
        "    if text == 'hang': time.sleep(60)\n    if text == 'die': os._exit(3)\n    return 1 / len(text)\n"
    )
    data = DataConfig(reward=f"{tmp_path}/r.py:f", grader_seconds=1.0, grader_workers=1)
    try:
        values, lost = rewards_of(["ab", "hang", "die"], ["1"] * 3, [SAMPLE] * 3, data)
        assert values.tolist() == [0.5, 0.0, 0.0] and lost == {"timeout": 1, "crash": 1}
        with pytest.raises(UserError, match=re.escape(f"{tmp_path}/r.py:7: ZeroDivisionError")):
            rewards_of([None], ["1"], [SAMPLE], data)
    finally:
        pool = shared_pool(1, 1.0, "lgrpo.rewards.reward_worker", (data.reward,))
        pool.close()
        shared_pool.cache_clear()


def raises(text, gold, sample):
    return {}["missing"]


def no_number(text, gold, sample):
    return "1"


def not_finite(text, gold, sample):
    return float("nan")


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (raises, rf"{re.escape(__file__)}:{raises.__code__.co_firstlineno + 1}: KeyError: 'missing'"),
        (no_number, "returned a str, no number"),
        (not_finite, "returned nan"),
    ],
)
def test_errors_name_the_function_its_line_and_the_text(reward, says):
    with pytest.raises(UserError, match=says) as caught:
        rewards_of(["some text"], ["13"], [SAMPLE], DataConfig(reward=reward))
    assert "'some text', gold '13'" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("corect", "no such reward; use correct or correct_and_short"),
        ("own_rewards:NUMBER", "no function"),
        ("own_rewards:nothing", "not found"),
    ],
)
def test_a_name_that_means_nothing(name, says):
    with pytest.raises(UserError, match=says):
        find_reward(name)
    with pytest.raises(UserError, match="no name of its own"):
        DataConfig(reward=lambda text, gold, sample: 1.0)


def test_the_length_term_orders_correct_samples_and_nothing_else():
    def paid(**fields):
        return correct_and_short("", "", dataclasses.replace(SAMPLE, **fields))

    assert paid(correct=True, completion_tokens=2) > paid(correct=True, completion_tokens=8) > paid(completion_tokens=1) == 0
    assert paid(correct=True, completion_tokens=10) == 0.5


def test_a_config_names_its_reward(tmp_path, monkeypatch):
    """As an object in a module, by path on the command line, in JSON."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").write_text(
        "from lgrpo.config import *\ndef mine(text, gold, sample): return 2.0\n"
        "def get_config(): return ExperimentConfig(name='x', data=DataConfig(reward=mine))\n"
    )
    cfg = load_experiment("x.py")
    assert cfg.data.reward == f"{tmp_path / 'x.py'}:mine" and find_reward(cfg.data.reward)("", "", SAMPLE) == 2.0
    assert from_json(to_json(cfg)) == cfg and hash(cfg) == hash(from_json(to_json(cfg)))
    assert parse_overrides(cfg, ["--data.reward", "correct_and_short"]).data.reward == "correct_and_short"


def test_the_examples_in_the_documents_are_those_that_are_tested():
    page = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    for module in (own_rewards, own_advantages):
        code = Path(module.__file__).read_text()
        assert code in blocks and len(code.splitlines()) < 40
