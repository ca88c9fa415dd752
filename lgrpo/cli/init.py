"""The command `init`: works on a new folder, not on an experiment."""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path

from lgrpo.errors import UserError
from lgrpo.runs.storage import remote

WHAT = "a new folder with experiments of your own on the embedded task, an ablation and a Makefile: lgrpo init DIR"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="new or empty folder")


def run(options: argparse.Namespace) -> int:
    """Errors: UserError when the folder holds something or cannot be made."""
    if remote(options.folder):
        raise UserError(f"{options.folder}: give a folder of this machine; its experiments' workdirs may lie in a bucket")
    folder = Path(options.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder}: holds files already; give a new folder")
        files = [file for file in resources.files("lgrpo").joinpath("templates").iterdir() if file.is_file()]
        for file in files:
            (folder / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}; give a folder that can be written") from error
    print(f"{folder}: {', '.join(sorted(file.name for file in files))}\nnext: cd {folder} && make")
    return 0
