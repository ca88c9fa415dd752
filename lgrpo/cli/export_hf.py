"""The command `export-hf`."""

from __future__ import annotations

import argparse

from lgrpo.cli.common import add_dtype
from lgrpo.runs.storage import place

WHAT = "a workdir's newest checkpoint as a Hugging Face folder"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", type=place)
    parser.add_argument("out", metavar="OUT", type=place, help="new folder")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the best evaluation, not the newest")
    parser.add_argument("--tokenizer", default="", help="folder of the tokenizer, when the one that the run used has moved")
    parser.add_argument("--shard-bytes", type=int, default=5_000_000_000, help="largest weight file")
    add_dtype(parser)


def run(options: argparse.Namespace) -> int:
    from lgrpo.runs import convert, multihost

    multihost.initialize()
    how = {"best": options.best, "dtype": options.dtype, "tokenizer": options.tokenizer, "shard_bytes": options.shard_bytes}
    files = convert.export_hf(options.workdir, options.out, **how)
    print(f"{options.out}: {', '.join(files)}")
    return 0
