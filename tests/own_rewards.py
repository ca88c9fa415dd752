"""A reward of one's own: partial credit for a number that is close, less for a completion that was cut."""

import re

from lgrpo.rewards.reward import in_workers

NUMBER = re.compile(r"-?\d+")


def close(text, gold, sample):
    if sample.correct:
        return 1.0
    numbers = NUMBER.findall(text)
    if not numbers or not NUMBER.fullmatch(gold):
        return 0.0
    distance = abs(int(numbers[-1]) - int(gold))
    return 0.5 / (1 + distance) * (0.5 if sample.truncated else 1.0)


@in_workers
def slow_and_close(text, gold, sample):
    return close(text, gold, sample)
