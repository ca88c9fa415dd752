"""The command `selftest`: kill a tiny run on this machine and mesh, restart it, compare."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

WHAT = "kill a tiny run on this machine and mesh, restart it, compare: python -m lgrpo selftest resume --kills 20"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("test", choices=("resume", "soak"), help="resume: a number of kills; soak: as many as fit into some minutes")
    parser.add_argument("--kills", type=int, default=20, help="resume: how often to kill")
    parser.add_argument("--minutes", type=float, default=30.0, help="soak: how long to go on")
    parser.add_argument("--processes", type=int, default=2, help="soak: runs side by side")
    parser.add_argument("--workdir", type=Path, help="new folder for the runs; default: a temporary one, which stays when something failed")
    parser.add_argument("--steps", type=int, default=12, help="length of a run")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--fsdp", type=int, default=1, help="devices over which weights are sharded")
    parser.add_argument("--tensor", type=int, default=1, help="devices over which heads and vocabulary are sharded")


def run(options: argparse.Namespace) -> int:
    """Exit code: 0 when nothing differed, else 1. Errors: UserError when the runs cannot be made at all."""
    from lgrpo.selftest import kills

    job = ("--steps", str(options.steps), "--fsdp", str(options.fsdp), "--tensor", str(options.tensor))
    common: dict[str, Any] = {"workdir": options.workdir, "seed": options.seed, "options": job}
    if options.test == "resume":
        return kills.resume(kills=options.kills, **common)
    return kills.soak(minutes=options.minutes, processes=options.processes, **common)
