"""The command line with another grader: an untrained model never scores, so its rewards would have no spread."""

import sys

import numpy as np

from lgrpo import __main__
from lgrpo.train import rl

HONEST = rl.score


def lucky(rollout, answers, tokenizer, cfg):
    scored = HONEST(rollout, answers, tokenizer, cfg)
    luck = np.asarray(rollout.tokens)[:, 2] % 2 == 0
    return scored.replace(rewards=luck.astype(np.float32), valid=np.ones_like(luck))


if __name__ == "__main__":
    rl.score = lucky
    sys.exit(__main__.main())
