"""The command `eval`."""

from __future__ import annotations

import argparse
from typing import Any

from lgrpo.cli.common import Remake, add_workdir, start

WHAT = "accuracy and pass@k of the workdir's newest checkpoint (or --weights best, init), with and without latent noise"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--suite", nargs="+", default=[], metavar="NAME", help="low, high or names of benchmarks; see docs/evaluation.md")
    which = "which weights: the newest checkpoint of the workdir, the best evaluated one, or the start of a run in it, train.init_from"
    parser.add_argument("--weights", choices=("newest", "best", "init"), default="newest", help=which)
    parser.add_argument("--out", default="eval", help="folder of the results inside the workdir")


def run(options: argparse.Namespace, cfg: Any, remake: Remake) -> int:
    start(options, cfg)
    from lgrpo.evaluation import evaluate

    return evaluate.run(cfg, options.workdir, suite=options.suite, out=options.out, weights=options.weights)
