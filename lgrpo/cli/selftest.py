"""The command `selftest`: what a user checks on their own machine: resume under kills, and the gradients of the log-probs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lgrpo.runs.storage import place

WHAT = "check this machine: kill a tiny run, restart it, compare (resume, soak); gradients of the log-probs (numerics)"

_TESTS = "resume: a number of kills; soak: as many as fit into some minutes; numerics: gradients of the log-probs against float32 autodiff"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("test", choices=("resume", "soak", "numerics"), help=_TESTS)
    parser.add_argument("--kills", type=int, default=20, help="resume: how often to kill")
    parser.add_argument("--minutes", type=float, default=30.0, help="soak: how long to go on")
    parser.add_argument("--processes", type=int, default=2, help="soak: runs side by side")
    parser.add_argument(
        "--workdir",
        type=place,
        help="new folder for the runs, or gs://BUCKET/FOLDER; default: a temporary one; stays when something failed",
    )
    parser.add_argument("--steps", type=int, default=12, help="length of a run")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--fsdp", type=int, default=1, help="devices over which weights are sharded")
    parser.add_argument("--tensor", type=int, default=1, help="devices over which heads and vocabulary are sharded")
    parser.add_argument("--experiment", type=Path, help="numerics: take the settings of this experiment; default: lgrpo's defaults")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="numerics: type of weights and activations; default: the experiment's"
    )
    parser.add_argument("--vocab", type=int, help="numerics: size of the vocabulary; default: the experiment's")


def _numerics(options: argparse.Namespace) -> int:
    from lgrpo.config import ExperimentConfig
    from lgrpo.config.machine import settle_dtype
    from lgrpo.config.overrides import apply_diff, load_experiment
    from lgrpo.config.validate import require_valid
    from lgrpo.selftest import numerics

    cfg = load_experiment(options.experiment) if options.experiment else ExperimentConfig()
    given = {"model.dtype": options.dtype, "model.vocab_size": options.vocab, "data.think_end_id": 0, "data.eos_id": 1}
    cfg, _ = settle_dtype(apply_diff(cfg, {path: value for path, value in given.items() if value is not None}))
    require_valid(cfg, device_count=1, kind="eval")
    return numerics.run(cfg)


def run(options: argparse.Namespace) -> int:
    """Exit code: 0 when nothing differed (numerics: by more than its limit), else 1. Errors: UserError when the test cannot be made at all."""
    if options.test == "numerics":
        return _numerics(options)
    from lgrpo.runs.multihost import require_alone
    from lgrpo.selftest import kills

    require_alone("selftest")
    job = ("--steps", str(options.steps), "--fsdp", str(options.fsdp), "--tensor", str(options.tensor))
    common: dict[str, Any] = {"workdir": options.workdir, "seed": options.seed, "options": job}
    if options.test == "resume":
        return kills.resume(kills=options.kills, **common)
    return kills.soak(minutes=options.minutes, processes=options.processes, **common)
