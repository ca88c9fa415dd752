"""The command `ask`: works on a workdir and one question, and takes every setting as an option."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lgrpo.runs.storage import place

WHAT = 'one problem in, its latent trace and answer out, in the terminal: python -m lgrpo ask WORKDIR "question"'
SETTINGS = True


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", type=place)
    parser.add_argument("question", metavar="QUESTION", help="the problem as text")
    parser.add_argument("--gold", default="", help="the right answer, for a verdict")
    parser.add_argument("--samples", type=int, default=0, help="so many samples under the noise of training; 0: one without noise")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the best evaluation, not the newest")


def run(options: argparse.Namespace, settings: Sequence[str]) -> int:
    from lgrpo.report import ask

    o = options
    return ask.run(o.workdir, o.question, settings, gold=o.gold, samples=o.samples, best=o.best)
