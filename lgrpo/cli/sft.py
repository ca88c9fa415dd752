"""The command `sft`."""

from __future__ import annotations

import argparse
from typing import Any

from lgrpo.cli.common import Remake, add_workdir, start

WHAT = "supervised training: explicit chains, or Latent-SFT (--stage encoder|decoder|union|labels|latent|all runs its chain)"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser)
    stages = ("encoder", "decoder", "union", "labels", "latent", "all")
    parser.add_argument("--stage", choices=stages, help="one stage of the Latent-SFT chain, in a folder of its own in the workdir, or all")


def run(options: argparse.Namespace, cfg: Any, remake: Remake) -> int:
    start(options, cfg)
    if options.stage:
        from lgrpo.train import chain

        return chain.run(remake, options.workdir, options.stage)
    from lgrpo.train import sft

    return sft.run(cfg, options.workdir)
