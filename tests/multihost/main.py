"""The command line with another grader: an untrained model never scores, so its rewards would have no spread.

Several commands with `then` between them run one after another: starting processes costs seconds.
At its end the main process says how many bytes the largest array had that it gathered whole from the others.
TEST_SIGNAL=module:name:n:p lets process p send itself SIGTERM in its n-th call of module.name: a real signal at a moment that tests can name.
"""

import importlib
import os
import signal

import jax
import numpy as np

from lgrpo import __main__
from lgrpo.runs import multihost
from lgrpo.train import rl

HONEST = rl.score


def lucky(rollout, answers, tokenizer, cfg):
    scored = HONEST(rollout, answers, tokenizer, cfg)
    luck = np.asarray(rollout.tokens)[:, 2] % 2 == 0
    return scored.replace(rewards=luck.astype(np.float32), valid=np.ones_like(luck))


def arm(module, name, at, process):
    module, calls = importlib.import_module(module), []
    honest = getattr(module, name)

    def signalling(*args, **kw):
        calls.append(1)
        if len(calls) == int(at) and jax.process_index() == int(process):
            signal.raise_signal(signal.SIGTERM)
        return honest(*args, **kw)

    setattr(module, name, signalling)


def watch_gathers():
    """The sizes of arrays, as they come to be gathered."""
    sizes, honest = [0], multihost.host

    def watched(tree):
        sizes.extend(x.nbytes for x in jax.tree.leaves(tree) if multihost._spread(x))
        return honest(tree)

    multihost.host = watched
    return sizes


def one_after_another(argv, honest=__main__.run):
    """Exit code of the first that fails. The processes find each other once."""
    for part in " ".join(argv).split(" then "):
        if code := honest(part.split(" ")):
            return code
        multihost.initialize = lambda *_: None
    return 0


if __name__ == "__main__":
    __main__.run = one_after_another
    rl.score = lucky
    gathered = watch_gathers()
    if "TEST_SIGNAL" in os.environ:
        arm(*os.environ["TEST_SIGNAL"].split(":"))
    try:
        __main__.main()
    finally:
        print(f"gathered at most {max(gathered)} bytes")
