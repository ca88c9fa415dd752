"""The command `trace`."""

from __future__ import annotations

import argparse
from typing import Any

from lgrpo.cli.common import Remake, add_workdir, start
from lgrpo.runs.storage import place

WHAT = "every latent step of chosen problems: mixtures, noise, advantages; in the terminal and, with --out, as a page"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--other", type=place, help="workdir of a second checkpoint, shown beside the first on the same noise")
    parser.add_argument("--problems", default="2", help="number of problems, or ids separated by commas (3,17; a single one as 3,)")
    parser.add_argument("--split", default="", help="split of the problems; default: data.eval_split")
    parser.add_argument("--show", type=int, default=2, help="samples of each problem in the terminal; the page has all")
    parser.add_argument("--out", type=place, metavar="FILE.html", help="file for the page")


def run(options: argparse.Namespace, cfg: Any, remake: Remake) -> int:
    start(options, cfg)
    from lgrpo.report import trace_view

    o = options
    return trace_view.run(cfg, o.workdir, other=o.other, problems=o.problems, split=o.split, out=o.out, show=o.show)
