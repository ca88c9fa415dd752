"""The command `data`: works on a file of problems, and takes every setting as an option."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lgrpo.errors import UserError
from lgrpo.runs.storage import place

WHAT = (
    "a file of problems before it is trained on: columns, lengths, what would be left out, prompts with targets: python -m lgrpo data FILE"
)
SETTINGS = True


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=place, help="JSON lines with problem, answer and, for supervised training, cot")
    parser.add_argument("--experiment", type=place, help="take the settings of this experiment; default: lgrpo's. Each is an option too")
    parser.add_argument("--show", type=int, default=5, help="records to show")


def run(options: argparse.Namespace, settings: Sequence[str]) -> int:
    """Errors: UserError for a file that cannot be read as problems."""
    from lgrpo.config import ExperimentConfig
    from lgrpo.config.overrides import apply_diff, load_experiment, parse_overrides
    from lgrpo.data.prompts import load_tokenizer, resolve
    from lgrpo.data.survey import survey

    file = options.file
    if file.suffix != ".jsonl":
        raise UserError(f"{file}: not a .jsonl file; write one JSON object a line (docs/own-data.md)")
    cfg = load_experiment(options.experiment) if options.experiment else ExperimentConfig()
    cfg = parse_overrides(cfg, settings, prog="python -m lgrpo data FILE")
    cfg = apply_diff(cfg, {"data.source": "jsonl", "data.path": str(file.parent)})
    tokenizer = load_tokenizer(cfg.data)
    print(survey(resolve(cfg, tokenizer), tokenizer, file, show=options.show))
    return 0
