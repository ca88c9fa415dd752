"""What worker processes share: fresh interpreters for work that is bounded in time and memory because it is not ours (answers of a policy, templates of
a checkpoint). They talk in lines over their pipes.

A worker is no fork: the trainer's process holds JAX threads and device memory. (multiprocessing's `spawn` would import the trainer's main module
again, which a script without a main guard does not survive.)
"""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys
from typing import TextIO

import lgrpo


def start(module: str, *arguments: object) -> subprocess.Popen[bytes]:
    """`python -m module arguments`, with pipes to its stdin and stdout."""
    root = str(pathlib.Path(lgrpo.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
    )


# -- in the worker ------------------------------------------------------------------------------------------------------------------------


def limit_memory(megabytes: int) -> None:
    """Lets this process grow by `megabytes` at most, and leave no core dump."""
    used = 0
    if os.path.exists("/proc/self/statm"):  # elsewhere (macOS) what is loaded already counts as nothing
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = used + megabytes * 2**20
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time(seconds: int) -> None:
    """From now on this process computes for `seconds` at most. The parent kills it earlier; this is for a parent that was itself killed."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    wanted = int(usage.ru_utime + usage.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def reply_stream() -> TextIO:
    """Where replies go. From now on whatever a library prints is none."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return replies
