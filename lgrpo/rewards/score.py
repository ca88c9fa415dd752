"""From a rollout to rewards and validity, on the host."""

from __future__ import annotations

import itertools

import numpy as np

from lgrpo.config import ExperimentConfig
from lgrpo.config.reads import end_ids
from lgrpo.data import prompts
from lgrpo.data.prompts import TextTokenizer
from lgrpo.rewards.grade import ERRORS, grade_all
from lgrpo.rewards.reward import rewards_of
from lgrpo.rewards.sample import samples_of
from lgrpo.types import Finish, Rollout, Scored


def completion_texts(rollout: Rollout, tokenizer: TextTokenizer, cfg: ExperimentConfig, *, whole: bool = False) -> list[str | None]:
    """What each of the N rows says after the first end of thinking and before the end of sequence; None where thinking never ended.
    whole: all that it says before the end of sequence.

    What was fed while thinking is not text: the surface tokens of latent steps are never graded.
    """
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    rest = [] if whole else prompts.think_end_ids(cfg.data, tokenizer)[1:]  # of an end of thinking that takes several tokens
    ends = end_ids(cfg.data)
    ended = mask & (tokens == cfg.data.think_end_id)
    start = np.where(ended.any(1), ended.argmax(1) + 1, -1) if not whole else np.zeros(len(tokens), int)
    answers = []
    for row, keep, at in zip(tokens, mask, start, strict=True):
        ids = row[at:][keep[at:]].tolist() if at >= 0 else []
        ids = list(itertools.takewhile(lambda i: i not in ends, ids))
        answers.append(ids[len(rest) :] if ids[: len(rest)] == rest else ids)
    texts = tokenizer.decode_batch(answers)
    return [text if at >= 0 else None for text, at in zip(texts, start, strict=True)]


def score(rollout: Rollout, answers: list[str], tokenizer: TextTokenizer, cfg: ExperimentConfig) -> Scored:
    """Rewards by cfg.data.reward, and validity, of N = B * G completions.

    answers: the B gold answers; row n belongs to prompt n // G. Valid means finished by the end of sequence, whether thinking ended by
    itself or by force; where that happened does not matter, so a row that ends at the very limit is valid. Invalid rows are graded all the
    same: whether their reward counts is the algorithm's decision. errors counts the rows of each category in grade.ERRORS.
    Errors: ValueError when N is no multiple of B; UserError when the LaTeX grader cannot be started, or the reward fails.
    """
    rows = np.asarray(rollout.tokens).shape[0]
    if not answers or rows % len(answers):
        raise ValueError(f"{rows} completions for {len(answers)} gold answers")
    group = rows // len(answers)
    texts = completion_texts(rollout, tokenizer, cfg)
    golds = [answers[n // group] for n in range(rows)]
    verdicts = grade_all(texts, golds, cfg.data)
    errors = dict.fromkeys(ERRORS, 0)
    for verdict in verdicts:
        if not verdict.correct:
            errors[verdict.category] += 1
    rewards, lost = rewards_of(texts, golds, samples_of(rollout, verdicts), cfg.data)
    for why, count in lost.items():
        errors[why] += count
    return Scored(
        rewards=rewards,
        correct=np.array([v.correct for v in verdicts], bool),
        valid=np.isin(np.asarray(rollout.finish), (Finish.EOS, Finish.FORCED_EXIT)),
        errors=errors,
    )
