"""The command `report`: works on finished or running workdirs, not on an experiment."""

from __future__ import annotations

import argparse

from lgrpo.runs.storage import place

WHAT = "one HTML page about runs, with figures: python -m lgrpo report WORKDIR [WORKDIR ...] --out FILE.html"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=place, metavar="WORKDIR", help="a run, or a folder of runs: seeds, a demo, an ablation")
    parser.add_argument("--out", type=place, required=True, metavar="FILE.html", help="the page; its figures go into FILE_figures/")
    base = "experiment's file or workdir whose config the others are compared with; default: the first run"
    parser.add_argument("--base", type=place, help=base)
    parser.add_argument("--title", default="", help="heading of the page; default: the folders' names")


def run(options: argparse.Namespace) -> int:
    from lgrpo.report import build

    print(build.write_report(options.folders, options.out, base=options.base, title=options.title))
    return 0
