"""Grading by several processes: each decodes and grades the rows of its own devices, and all learn every verdict."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lgrpo.rewards.grade import ERRORS
from lgrpo.runs import multihost
from lgrpo.types import Rollout, Scored

Score = Callable[[Rollout, list[str]], Scored]


def score_own(score: Score, rollout: Rollout, answers: list[str]) -> Scored:
    """score(rollout, answers) of a global rollout, leaves [N, ...] sharded along N in whole groups; the result is the same on every process.

    Travels between hosts: a reward, a verdict and a validity per row, and the counts of the errors.
    """
    rows, mine = multihost.own_rows(rollout)
    size = rollout.finish.shape[0]
    rewards, correct, valid = np.zeros(size, np.float32), np.zeros(size, np.int32), np.zeros(size, np.int32)
    errors = np.zeros(len(ERRORS), np.int32)
    if len(rows):
        group = size // len(answers)
        found = score(mine, [answers[row // group] for row in rows[::group]])
        rewards[rows], correct[rows], valid[rows] = found.rewards, found.correct, found.valid
        errors[:] = [found.errors.get(name, 0) for name in ERRORS]
    rewards, correct, valid, errors = (multihost.total(x) for x in (rewards, correct, valid, errors))
    counts = {name: int(n) for name, n in zip(ERRORS, errors, strict=True)}
    return Scored(rewards=rewards, correct=correct.astype(bool), valid=valid.astype(bool), errors=counts)


def measured(rollout: Rollout) -> dict[str, np.ndarray]:
    """What metrics need of each row, int or bool [N] on every host: a few bytes a row go between processes. The rollout stays where it is."""
    if not multihost.several():  # sums on the devices would wait for what they are at
        names = ("mask", "loss_mask", "is_latent", "finish", "chain_len", "thought")
        rollout = rollout.replace(**{name: multihost.host(getattr(rollout, name)) for name in names})
    rows = {
        "steps": rollout.mask.sum(-1),
        "latent_steps": rollout.is_latent.sum(-1),
        "chain": rollout.chain_len,
        "answer": rollout.answer_len,
        "finish": rollout.finish,
        "forced": rollout.forced,
    }
    return {name: np.asarray(multihost.host(x)) for name, x in rows.items()}
