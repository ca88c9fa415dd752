"""The command `overlap`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lgrpo.cli.common import Remake
from lgrpo.runs.storage import place, write_text

WHAT = "problems that the training split shares with evaluation splits"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--against", nargs="+", metavar="SPLIT", help="splits, such as test or svamp/test; default: data.eval_split")
    parser.add_argument("--out", type=place, help="file for the report as JSON, with every shared problem")


def run(options: argparse.Namespace, cfg: Any, remake: Remake) -> int:
    from lgrpo.data.overlap import overlap_report, overlap_table

    report = overlap_report(cfg.data, cfg.data.train_split, options.against or [cfg.data.eval_split])
    print(overlap_table(report))
    if options.out is not None:
        write_text(options.out, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return 0
