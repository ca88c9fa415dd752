"""The process in which math-verify (sympy) compares two LaTeX answers. Started by lgrpo.rewards.math_pool; nothing else imports it.

A line of JSON [gold, answer] on stdin gives a line with the outcome on stdout: see math_rules. The process bounds its own memory; its time
is bounded by the parent, which kills it.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import TextIO

READY = "ready"


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


def main() -> None:
    """Answers lines until stdin ends. Arguments: the memory limit in MiB, and the longest time in whole seconds for an answer."""
    logging.disable(logging.CRITICAL)
    from lgrpo.rewards.math_rules import judge  # before `ready`, so that loading sympy counts into no answer's time

    judge("x+1", "1+x")  # builds the parser's tables
    replies = reply_stream()
    limit_memory(int(sys.argv[1]))
    print(READY, file=replies, flush=True)
    for line in sys.stdin:
        limit_time(int(sys.argv[2]))
        gold, answer = json.loads(line)
        print(judge(gold, answer), file=replies, flush=True)


if __name__ == "__main__":
    main()
