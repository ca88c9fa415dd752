"""Becomes another command after tying itself to its parent and to some cores: python child.py PARENT CORES COMMAND...

A file of its own, run as a script: between fork and exec of a process that has threads, Python code may hang.
PARENT: process id; when that process ends in whatever way, so does this one (Linux). CORES: 0,1 or - for any.
"""

import ctypes
import os
import signal
import sys

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG; it outlives exec


def main(argv: list[str]) -> None:
    parent, cores, command = int(argv[0]), argv[1], argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before we asked
            sys.exit(1)
    if cores != "-" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
