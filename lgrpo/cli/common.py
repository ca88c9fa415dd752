"""What several commands share."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.storage import place

Remake = Callable[[str], Any]
"""The experiment's config with the command line's options applied, for a stage of Latent-SFT."""


class Parser(argparse.ArgumentParser):
    """argparse that reports mistakes as we do."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see `{self.prog} --help`")


def add_workdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=place, help="folder for checkpoints, metrics and results")


def start(options: argparse.Namespace, cfg: Any) -> None:
    """Before a command that computes: its workdir is given, processes find each other, compiled programs are kept. Errors: UserError."""
    if options.workdir is None:
        raise UserError(f"--workdir is missing; give the folder for the results, e.g. --workdir /tmp/{cfg.name}")
    from lgrpo.runs import multihost

    multihost.initialize(cfg.train.start_timeout)
    cache_compilations(cfg.train.compilation_cache)


def cache_compilations(folder: str) -> None:
    """Only for the command line: a library does not write to the user's home."""
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        import jax

        jax.config.update("jax_compilation_cache_dir", str(place(folder)))


def add_dtype(parser: argparse.ArgumentParser) -> None:
    choices = ("keep", "float32", "bfloat16")
    parser.add_argument("--dtype", choices=choices, default="keep", help="type of the weights; keep: as they are")


def _explained(error: Exception) -> str:
    """What to tell the user in place of a traceback; "" where a traceback is what helps."""
    if isinstance(error, UserError):
        return str(error)
    if said := storage.reason(error):
        return f"{said}; what was saved is intact"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error}; make room and run the same command again: checkpoints are intact"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error}; mend that and run the same command again: checkpoints that were saved are intact"
    return ""


def _nothing_after_this() -> None:
    """Threads that Orbax left behind may fail later, as the save did: neither their tracebacks nor what they log comes below the last line."""
    for name in ("absl", "orbax"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    threading.excepthook = lambda _: None


def ended(work: Callable[[], int]) -> int:
    """Exit code of what a process came for; its errors are told on stderr, last of all, and to the other processes of the run."""
    from lgrpo.runs import partners  # no JAX before the command asks for it

    # Orbax leaves tasks behind that failed as the save did, which has told us already; asyncio would write each one's traceback below our line.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    try:
        code = work()
    except Exception as error:
        said = _explained(error)
        partners.wait_for_reason(error)  # where another process is the cause, this one ends with what that one said
        _nothing_after_this()
        print(storage.masked(f"error: {said}" if said else traceback.format_exc().rstrip()), file=sys.stderr, flush=True)
        code = 2 if said else 1
        partners.fail(storage.masked(said or f"{type(error).__name__}: {error}"), code)
    except BaseException as stop:
        partners.interrupted(stop)
        raise
    return code
