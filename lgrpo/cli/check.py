"""The command `check`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from lgrpo.cli.common import Remake
from lgrpo.runs.storage import place

WHAT = "do what a command does up to its first batch: resolved config and ids, first prompt with its target, and what is wrong"


def add_options(parser: argparse.ArgumentParser) -> None:
    which = "which command the config is meant for; default: found from the module"
    parser.add_argument("--kind", choices=("train", "sft", "eval"), help=which)
    parser.add_argument("--stage", default="encoder", help="of a module whose get_config takes a stage: which one to check")
    parser.add_argument("--workdir", type=place, help="also check what is in it: a run to go on with, or to evaluate")
    parser.add_argument("--fast", action="store_true", help="leave the data out")
    parser.add_argument("--devices", type=int, default=0, help="number of devices to check against; default: those of this machine")
    parser.add_argument("--mesh-table", type=int, nargs="+", metavar="N", help="print where every tensor lies on a mesh of N devices")
    parser.add_argument("--memory", action="store_true", help="compile the run's programs and print their memory per device")
    cost = "compile the run's programs and print their operations and bytes per device, and what limits each on the chip of --target"
    parser.add_argument("--cost", action="store_true", help=cost)
    target = "with --memory or --cost: a TPU to compile for, v5e:2x4; needs libtpu, not a TPU"
    parser.add_argument("--target", default="", metavar="TOPOLOGY", help=target)


def run(options: argparse.Namespace, cfg: Any, remake: Remake) -> int:
    """The resolved config as JSON on stdout, all else on stderr. Errors: UserError that lists what is wrong."""
    import jax

    from lgrpo.config.overrides import apply_diff, to_json
    from lgrpo.runs.precision import settle_for_run
    from lgrpo.train import check

    found, why = check.find_kind(options.experiment, cfg)
    kind, why = (options.kind, "as asked") if options.kind else (found, why)
    if options.mesh_table:
        from lgrpo.train.layout import table

        print("\n\n".join(table(cfg, count, rl=kind != "sft") for count in options.mesh_table))
        return 0
    if options.memory or options.cost:
        from lgrpo.train import cost, memory

        table_of = memory.memory_table if options.memory else cost.cost_table
        print(table_of(cfg, memory.target_devices(options.target, options.devices), rl=kind != "sft"))
        return 0
    if kind == "sft" and check.takes_stage(options.experiment):
        cfg = apply_diff(remake(options.stage), {"sft.stage": options.stage})
        why += f"; stage {options.stage}"
    devices = options.devices or jax.device_count()
    print(f"checked for `{kind}` ({why})", file=sys.stderr)
    cfg, chosen = settle_for_run(cfg, options.workdir)
    if chosen:
        print(chosen, file=sys.stderr)
    try:
        cfg, tokenizer = check.prepared(cfg, devices, kind)
    finally:
        print(json.dumps(to_json(cfg), indent=2), flush=True)
    print(check.report(cfg, tokenizer, options.workdir, devices, kind, fast=options.fast), file=sys.stderr)
    print(f"ok for `{kind}` on {devices} device(s)", file=sys.stderr)
    return 0
