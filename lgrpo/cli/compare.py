"""The command `compare`: works on two results, not on an experiment."""

from __future__ import annotations

import argparse

from lgrpo.runs.storage import place

WHAT = "paired test between two results of eval: python -m lgrpo compare A B"


def add_options(parser: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        parser.add_argument(name, type=place, help="eval.jsonl, a folder that holds one, or the folder of a suite")


def run(options: argparse.Namespace) -> int:
    from lgrpo.evaluation import compare

    return compare.run(options.a, options.b)
