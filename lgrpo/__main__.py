"""Command line: python -m lgrpo COMMAND EXPERIMENT [--workdir DIR] [--section.field VALUE ...]."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lgrpo.errors import UserError

if TYPE_CHECKING:
    from lgrpo.config import ExperimentConfig

# Imports of JAX and of the loops are inside the functions: --help and a mistyped option answer at once.

_COMMANDS = {
    "train": "reinforcement learning",
    "sft": "supervised training: explicit chains, or Latent-SFT (--stage encoder|decoder|union|labels|latent|all runs its chain)",
    "eval": "accuracy and pass@k of the workdir's newest checkpoint, with and without latent noise",
    "trace": "every latent step of chosen problems: mixtures, noise, advantages; in the terminal and, with --out, as a page",
    "check": "print the resolved config and what is wrong with it; builds nothing",
    "overlap": "problems that the training split shares with evaluation splits",
}
_TOOLS = {
    "ablate": "a grid of settings times seeds and one table: python -m lgrpo ablate EXPERIMENT --grid stabilizers --seeds 3 --workdir DIR",
    "report": "one HTML page about runs, with figures: python -m lgrpo report WORKDIR [WORKDIR ...] --out FILE.html",
    "compare": "paired test between two results of eval: python -m lgrpo compare A B",
    "selftest": "kill a tiny run on this machine and mesh, restart it, compare: python -m lgrpo selftest resume --kills 20",
    "import-hf": "a Hugging Face folder or repo id as checkpoint 0 of a new workdir",
    "export-hf": "a workdir's newest checkpoint as a Hugging Face folder",
}
_USAGE = """\
usage: python -m lgrpo COMMAND EXPERIMENT [--workdir DIR] [--section.field VALUE ...]
       python -m lgrpo import-hf SOURCE --workdir DIR | export-hf WORKDIR OUT

commands:
{commands}

EXPERIMENT is a Python file with get_config(), such as experiments/x.py.
Every setting is an option: --algo.clip-low 0.1 --rollout.latent.clamp None --train.share-prefix False
`python -m lgrpo train EXPERIMENT --help` lists them with their values in that experiment.
A run continues from the newest checkpoint of its workdir; --checkpoint.resume False refuses to.

exit codes: 0 done, 2 a mistake in the command or the config, 75 stopped by a signal after saving (run the same command again)"""


def _usage() -> str:
    return _USAGE.format(commands="\n".join(f"  {name:<10}{what}" for name, what in (_COMMANDS | _TOOLS).items()))


class _Parser(argparse.ArgumentParser):
    """argparse that reports mistakes as we do."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see `{self.prog} --help`")


def _own_options(command: str) -> _Parser:
    """The few options that are not settings of the experiment."""
    parser = _Parser(prog=f"python -m lgrpo {command} EXPERIMENT", allow_abbrev=False, add_help=False)
    if command == "check":
        parser.add_argument("--kind", choices=("train", "sft", "eval"), default="train", help="which command the config is meant for")
        parser.add_argument("--devices", type=int, default=0, help="number of devices to check against; default: those of this machine")
        parser.add_argument("--mesh-table", type=int, nargs="+", metavar="N", help="print where every tensor lies on a mesh of N devices")
        parser.add_argument("--memory", action="store_true", help="compile the run's programs and print their memory per device")
        parser.add_argument(
            "--target", default="", metavar="TOPOLOGY", help="with --memory: a TPU to compile for, v5e:2x4; needs libtpu, not a TPU"
        )
    elif command == "overlap":
        parser.add_argument("--against", nargs="+", metavar="SPLIT", help="splits, such as test or svamp/test; default: data.eval_split")
        parser.add_argument("--out", type=Path, help="file for the report as JSON, with every shared problem")
    else:
        parser.add_argument("--workdir", type=Path, help="folder for checkpoints, metrics and results")
    if command == "trace":
        parser.add_argument("--other", type=Path, help="workdir of a second checkpoint, shown beside the first on the same noise")
        parser.add_argument("--problems", default="2", help="number of problems, or ids separated by commas (3,17; a single one as 3,)")
        parser.add_argument("--split", default="", help="split of the problems; default: data.eval_split")
        parser.add_argument("--show", type=int, default=2, help="samples of each problem in the terminal; the page has all")
        parser.add_argument("--out", type=Path, metavar="FILE.html", help="file for the page")
    if command == "eval":
        parser.add_argument(
            "--suite", nargs="+", default=[], metavar="NAME", help="low, high or names of benchmarks; see docs/evaluation.md"
        )
        parser.add_argument("--out", default="eval", help="folder of the results inside the workdir")
    if command == "sft":
        stages = ("encoder", "decoder", "union", "labels", "latent", "all")
        parser.add_argument(
            "--stage", choices=stages, help="one stage of the Latent-SFT chain, in a folder of its own in the workdir, or all"
        )
    return parser


def _check(options: argparse.Namespace, cfg: object) -> int:
    import jax

    from lgrpo.overrides import to_json
    from lgrpo.validate import validate

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


def _compare(rest: Sequence[str]) -> int:
    """Works on two results, not on an experiment."""
    parser = _Parser(prog="python -m lgrpo compare", allow_abbrev=False)
    for name in ("a", "b"):
        parser.add_argument(name, type=Path, help="eval.jsonl, a folder that holds one, or the folder of a suite")
    options = parser.parse_args(rest)
    from lgrpo.evaluation import compare

    return compare.run(options.a, options.b)


def _report(rest: Sequence[str]) -> int:
    """Works on finished or running workdirs, not on an experiment."""
    parser = _Parser(prog="python -m lgrpo report", description=_TOOLS["report"], allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=Path, metavar="WORKDIR", help="a run, or a folder of runs: seeds, a demo, an ablation")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page; its figures go into FILE_figures/")
    parser.add_argument(
        "--base", type=Path, help="experiment's file or workdir whose config the others are compared with; default: the first run"
    )
    parser.add_argument("--title", default="", help="heading of the page; default: the folders' names")
    options = parser.parse_args(rest)
    from lgrpo.report import build

    print(build.write_report(options.folders, options.out, base=options.base, title=options.title))
    return 0


def _selftest(rest: Sequence[str]) -> int:
    parser = _Parser(prog="python -m lgrpo selftest", description=_TOOLS["selftest"], allow_abbrev=False)
    from lgrpo import selftest

    selftest.add_options(parser)
    return selftest.run(parser.parse_args(rest))


def _ablate(rest: Sequence[str]) -> int:
    """Works on an experiment, but its runs are processes of their own."""
    from lgrpo.ablate import cli

    parser = _Parser(prog="python -m lgrpo ablate", description=_TOOLS["ablate"], allow_abbrev=False)
    cli.add_options(parser)
    return cli.run(parser.parse_args(rest))


def _overlap(options: argparse.Namespace, cfg: ExperimentConfig) -> int:
    from lgrpo.data.overlap import overlap_report, overlap_table

    report = overlap_report(cfg.data, cfg.data.train_split, options.against or [cfg.data.eval_split])
    print(overlap_table(report))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _conversion_options(command: str) -> _Parser:
    parser = _Parser(prog=f"python -m lgrpo {command}", description=_TOOLS[command], allow_abbrev=False)
    dtype = {"choices": ("keep", "float32", "bfloat16"), "default": "keep", "help": "type of the weights; keep: as they are"}
    if command == "import-hf":
        parser.add_argument("source", metavar="SOURCE", help="folder with config.json and safetensors, or a repo id to download")
        parser.add_argument("--workdir", type=Path, required=True, help="new workdir; the tokenizer goes into its folder hf/")
        parser.add_argument("--revision", help="branch, tag or commit of a repo")
        what = "tokens beyond the model's rows: an error, left out of the tokenizer, or given new rows"
        parser.add_argument("--extra-tokens", choices=("refuse", "drop", "pad"), default="refuse", help=what)
        parser.add_argument("--fsdp", type=int, default=-1, help="devices that share the weights; -1: all that --tensor leaves")
        parser.add_argument("--tensor", type=int, default=1, help="devices that share heads, feed-forward and vocabulary")
    else:
        parser.add_argument("workdir", metavar="WORKDIR", type=Path)
        parser.add_argument("out", metavar="OUT", type=Path, help="new folder")
        parser.add_argument("--best", action="store_true", help="the checkpoint with the best evaluation, not the newest")
        parser.add_argument("--tokenizer", default="", help="folder of the tokenizer, when the one that the run used has moved")
        parser.add_argument("--shard-bytes", type=int, default=5_000_000_000, help="largest weight file")
    parser.add_argument("--dtype", **dtype)
    return parser


def _convert(command: str, argv: Sequence[str]) -> int:
    """import-hf and export-hf: no experiment, options of their own."""
    options = _conversion_options(command).parse_args(argv)
    from lgrpo import convert, multihost
    from lgrpo.config import MeshConfig

    multihost.initialize()
    if command == "import-hf":
        mesh = MeshConfig(data=1, fsdp=options.fsdp, tensor=options.tensor)
        cfg = convert.import_hf(
            options.source, options.workdir, revision=options.revision, dtype=options.dtype, extra_tokens=options.extra_tokens, mesh=mesh
        )
        print(convert.describe_import(cfg, options.workdir))
        return 0
    files = convert.export_hf(
        options.workdir,
        options.out,
        best=options.best,
        dtype=options.dtype,
        tokenizer=options.tokenizer,
        shard_bytes=options.shard_bytes,
    )
    print(f"{options.out}: {', '.join(files)}")
    return 0


def _cache_compilations(folder: str) -> None:
    """Only here: a library does not write to the user's home."""
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        import jax

        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))


def _dispatch(command: str, options: argparse.Namespace, cfg: ExperimentConfig, make_config: Callable[[str], object]) -> int:
    """make_config: the experiment's config, options applied, for a stage of Latent-SFT."""
    from lgrpo import multihost

    multihost.initialize()
    _cache_compilations(cfg.train.compilation_cache)
    if command == "train":
        from lgrpo.train import rl

        return rl.run(cfg, options.workdir)
    if command == "sft" and options.stage:
        from lgrpo.train import chain

        return chain.run(make_config, options.workdir, options.stage)
    if command == "sft":
        from lgrpo.train import sft

        return sft.run(cfg, options.workdir)
    if command == "trace":
        from lgrpo.report import trace_view

        o = options
        return trace_view.run(cfg, o.workdir, other=o.other, problems=o.problems, split=o.split, out=o.out, show=o.show)
    from lgrpo.evaluation import evaluate

    return evaluate.run(cfg, options.workdir, suite=options.suite, out=options.out)


def run(argv: Sequence[str]) -> int:
    """Exit code of a command line. Errors: UserError; SystemExit after --help."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    command, rest = argv[0], list(argv[1:])
    own = {"ablate": _ablate, "compare": _compare, "report": _report, "selftest": _selftest}
    if command in own:
        return own[command](rest)
    if command in _TOOLS:
        return _convert(command, rest)
    if command not in _COMMANDS:
        raise UserError(f"{command}: no such command; use one of {', '.join(_COMMANDS | _TOOLS)}")
    parser = _own_options(command)
    helping = "-h" in rest or "--help" in rest
    # First, because an option's values cannot be told from an experiment.
    if not rest or rest[0].startswith("-"):
        if helping:
            print(f"{_usage()}\n\n{parser.format_help()}")
            return 0
        raise UserError(f"no experiment given; use python -m lgrpo {command} experiments/x.py ...")
    from lgrpo.overrides import load_experiment, parse_overrides

    cfg = load_experiment(rest[0])
    options, settings = parser.parse_known_args(rest[1:])
    if helping:
        print(parser.format_help())
    prog = parser.prog.replace("EXPERIMENT", rest[0])
    cfg = parse_overrides(cfg, settings, prog=prog)
    if command == "check":
        return _check(options, cfg)
    if command == "overlap":
        return _overlap(options, cfg)
    if options.workdir is None:
        raise UserError(f"--workdir is missing; give the folder for the results, e.g. --workdir /tmp/{cfg.name}")
    return _dispatch(command, options, cfg, lambda stage: parse_overrides(load_experiment(rest[0], stage), settings, prog=prog))


def main() -> None:
    """Entry point. UserError: `error: ...` on stderr and exit code 2."""
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error}; make room and run the same command again: checkpoints are intact", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
