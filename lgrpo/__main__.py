"""Command line: python -m lgrpo COMMAND EXPERIMENT [--workdir DIR] [--section.field VALUE ...]. The commands are in lgrpo/cli."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from lgrpo.cli.common import Parser, ended
from lgrpo.errors import UserError
from lgrpo.runs import output

_ON_EXPERIMENTS = ("train", "sft", "eval", "trace", "check", "overlap")
_TOOLS = ("ablate", "report", "compare", "selftest", "import-hf", "export-hf", "init", "data", "ask")
_USAGE = """\
usage: python -m lgrpo COMMAND EXPERIMENT [--workdir DIR] [--section.field VALUE ...]
       python -m lgrpo import-hf SOURCE --workdir DIR | export-hf WORKDIR OUT

commands:
{commands}

EXPERIMENT is a Python file with get_config(), such as experiments/x.py.
Every setting is an option: --algo.clip-low 0.1 --rollout.latent.law.clamp None --train.share-prefix False
`python -m lgrpo train EXPERIMENT --help` lists them with their values in that experiment.
A run continues from the newest checkpoint of its workdir; --checkpoint.resume False refuses to.

exit codes: 0 done; 1 a fault of the program, with a traceback; 2 a mistake that one line explains, in the command, the config, the files or
the machine; 75 stopped by a signal after saving (run the same command again)"""


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"lgrpo.cli.{command.replace('-', '_')}")


def _usage() -> str:
    return _USAGE.format(commands="\n".join(f"  {name:<10}{_module(name).WHAT}" for name in _ON_EXPERIMENTS + _TOOLS))


def _on_experiment(command: str, rest: list[str]) -> int:
    """A command on an experiment: its own options, and every setting as one."""
    module = _module(command)
    parser = Parser(prog=f"python -m lgrpo {command} EXPERIMENT", allow_abbrev=False, add_help=False)
    module.add_options(parser)
    helping = "-h" in rest or "--help" in rest
    # First, because an option's values cannot be told from an experiment.
    if not rest or rest[0].startswith("-"):
        if helping:
            print(f"{_usage()}\n\n{parser.format_help()}")
            return 0
        raise UserError(f"no experiment given; use python -m lgrpo {command} experiments/x.py ...")
    from lgrpo.config.overrides import load_experiment, parse_overrides

    cfg = load_experiment(rest[0])
    options, settings = parser.parse_known_args(rest[1:])
    options.experiment = Path(rest[0])
    if helping:
        print(parser.format_help())
    prog = parser.prog.replace("EXPERIMENT", rest[0])
    cfg = parse_overrides(cfg, settings, prog=prog)
    return module.run(options, cfg, lambda stage: parse_overrides(load_experiment(rest[0], stage), settings, prog=prog))


def run(argv: Sequence[str]) -> int:
    """Exit code of a command line. Errors: UserError; SystemExit after --help."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    command, rest = argv[0], list(argv[1:])
    if command in _ON_EXPERIMENTS:
        return _on_experiment(command, rest)
    if command not in _TOOLS:
        raise UserError(f"{command}: no such command; use one of {', '.join(_ON_EXPERIMENTS + _TOOLS)}")
    module = _module(command)
    parser = Parser(prog=f"python -m lgrpo {command}", description=module.WHAT, allow_abbrev=False)
    module.add_options(parser)
    if getattr(module, "SETTINGS", False):  # every setting is an option of these too
        return module.run(*parser.parse_known_args(rest))
    return module.run(parser.parse_args(rest))


def main() -> None:
    """Entry point. UserError: `error: ...` on stderr and exit code 2."""
    with output.protected():
        code = ended(lambda: run(sys.argv[1:]))
    sys.exit(code)


if __name__ == "__main__":
    main()
