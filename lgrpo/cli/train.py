"""The command `train`."""

from __future__ import annotations

import argparse
from typing import Any

from lgrpo.cli.common import Remake, add_workdir, start

WHAT = "reinforcement learning"
add_options = add_workdir


def run(options: argparse.Namespace, cfg: Any, remake: Remake) -> int:
    start(options, cfg)
    from lgrpo.train import rl

    return rl.run(cfg, options.workdir)
