"""The command `check`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from lgrpo.cli.common import Remake
from lgrpo.errors import UserError

WHAT = "print the resolved config and what is wrong with it; builds nothing"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=("train", "sft", "eval"), default="train", help="which command the config is meant for")
    parser.add_argument("--devices", type=int, default=0, help="number of devices to check against; default: those of this machine")
    parser.add_argument("--mesh-table", type=int, nargs="+", metavar="N", help="print where every tensor lies on a mesh of N devices")
    parser.add_argument("--memory", action="store_true", help="compile the run's programs and print their memory per device")
    target = "with --memory: a TPU to compile for, v5e:2x4; needs libtpu, not a TPU"
    parser.add_argument("--target", default="", metavar="TOPOLOGY", help=target)


def run(options: argparse.Namespace, cfg: Any, remake: Remake) -> int:
    """Errors: UserError that lists what is wrong."""
    import jax

    from lgrpo.config.overrides import to_json
    from lgrpo.config.validate import validate

    if options.mesh_table:
        from lgrpo.train.layout import table

        print("\n\n".join(table(cfg, count, rl=options.kind != "sft") for count in options.mesh_table))
        return 0
    if options.memory:
        from lgrpo.train.memory import memory_table, target_devices

        print(memory_table(cfg, target_devices(options.target, options.devices), rl=options.kind != "sft"))
        return 0
    devices = options.devices or jax.device_count()
    print(json.dumps(to_json(cfg), indent=2))
    problems = validate(cfg, device_count=devices, kind=options.kind)
    if problems:
        raise UserError("\n  ".join([f"{len(problems)} problem(s) for `{options.kind}` on {devices} device(s):", *problems]))
    print(f"ok for `{options.kind}` on {devices} device(s)", file=sys.stderr)
    return 0
