"""The seam of the reward: a function of what a completion says, of the gold answer, and of how the completion was sampled.

`data.reward` names it: a function of this file by its name, `module:function`, or `file.py:function`; an experiment may give the function itself.
Whatever it pays, pass@1 and `reward/correct` count correct answers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lgrpo.config import DataConfig
from lgrpo.config.objects import find_object
from lgrpo.errors import UserError
from lgrpo.rewards.sample import Sample
from lgrpo.rewards.workers import shared_pool

Reward = Callable[[str, str, Sample], float]
LENGTH_SHARE = 0.5
"""Of the reward of a correct answer, what the length term can take."""
_WORKER = "lgrpo.rewards.reward_worker"  # imports this module
_SHOWN = 200  # characters of a completion in a message


def correct(text: str, gold: str, sample: Sample) -> float:
    """1 for a correct answer, else 0."""
    return float(sample.correct)


def correct_and_short(text: str, gold: str, sample: Sample) -> float:
    """Of a correct answer 1, less LENGTH_SHARE times the share of the longest completion that it took; of a wrong one 0.

    A correct answer is always worth more than a wrong one. Among correct samples shorter ones get the advantage, so that groups which are solved
    throughout still teach something: chains shrink. Length counts all steps, latent ones included. Effect: docs/extending.md.
    """
    return float(sample.correct) * (1.0 - LENGTH_SHARE * sample.completion_tokens / sample.limit)


_OURS = {"correct": correct, "correct_and_short": correct_and_short}


def in_workers(reward: Reward) -> Reward:
    """Decorator: this reward is computed in data.grader_workers processes, each completion for at most data.grader_seconds. For functions that take
    their time or may hang. What takes longer, or ends its process, gets 0 and is counted as grade/timeout and grade/crash."""
    reward.in_workers = True  # type: ignore[attr-defined]  # functions take attributes
    return reward


@functools.cache
def find_reward(name: str) -> Reward:
    """The function that data.reward names. Errors: UserError."""
    if name in _OURS:
        return _OURS[name]
    what = "data.reward"
    if ":" not in name:
        raise UserError(f"{what} {name!r}: no such reward; use {' or '.join(_OURS)}, or give module:function or file.py:function")
    found = find_object(name, what)
    if not callable(found) or isinstance(found, type):
        raise UserError(f"{what} {name!r}: a {type(found).__name__}, no function reward(text, gold, sample) -> float")
    return found


def rewards_of(
    texts: Sequence[str | None], golds: Sequence[str], samples: Sequence[Sample], cfg: DataConfig
) -> tuple[np.ndarray, dict[str, int]]:
    """Rewards of N completions, float32 [N], and how many of them a worker process could not give: {"timeout": n, "crash": n}.

    texts: after thinking, None where it never ended. Errors: UserError with file and line of a function that raises or returns no finite number,
    and the text that made it do so.
    """
    reward = find_reward(cfg.reward)
    rows = [("" if text is None else text, gold, sample) for text, gold, sample in zip(texts, golds, samples, strict=True)]
    if not getattr(reward, "in_workers", False):
        return np.array([_checked(call(reward, *row), row, cfg.reward) for row in rows], np.float32), {}
    pool = shared_pool(cfg.grader_workers, cfg.grader_seconds, _WORKER, (cfg.reward,))
    replies = pool.judge([(text, gold, json.dumps(dataclasses.asdict(sample))) for text, gold, sample in rows])
    lost: dict[str, int] = {why: replies.count(why) for why in ("timeout", "crash") if why in replies}
    values = [0.0 if reply in lost else _checked(json.loads(reply), row, cfg.reward) for reply, row in zip(replies, rows, strict=True)]
    return np.array(values, np.float32), lost


def call(reward: Reward, text: str, gold: str, sample: Sample) -> float | str:
    """What the reward returns as a float, or what went wrong as a text. Never raises."""
    try:
        value = reward(text, gold, sample)
    except Exception as error:  # whatever a user's function raises
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{where.filename}:{where.lineno}: {type(error).__name__}: {' '.join(str(error).split())}"
    if not isinstance(value, (numbers.Real, np.bool_)):  # NumPy's numbers are among them
        return f"it returned a {type(value).__name__}, no number"
    return float(value)


def _checked(value: Any, row: tuple[str, str, Sample], name: str) -> float:
    """Errors: UserError for a failure (a text) and for a number that is not finite."""
    if isinstance(value, float) and math.isfinite(value):
        return value
    text, gold, _ = row
    why = value if isinstance(value, str) else f"it returned {value}"
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
    raise UserError(f"data.reward {name}: {why}; the completion was {shown!r}, gold {gold!r}; mend the function")
