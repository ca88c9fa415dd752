"""The process in which math-verify (sympy) compares two LaTeX answers. Started by lgrpo.rewards.math_pool; nothing else imports it.

A line of JSON [gold, answer] on stdin gives a line with the outcome on stdout. LaTeX is parsed by a grammar: no part of an answer is evaluated as
Python. The process bounds its own memory; its time is bounded by the parent, which kills it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import sys
from typing import Any, TextIO

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


@functools.lru_cache(maxsize=4096)
def _gold(latex: str) -> tuple[Any, ...]:
    return _parse(latex)


def _parse(latex: str) -> tuple[Any, ...]:
    """What math-verify reads in the LaTeX; the text itself, which it adds as a fallback, is left out."""
    from math_verify import LatexExtractionConfig, parse

    # No timeout here: its signal does not interrupt big-integer arithmetic. The parent's does.
    found = parse(f"${latex}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True)
    return tuple(x for x in found if not isinstance(x, str))


def judge(gold: str, answer: str) -> str:
    """correct, wrong, or unparsable (where one of the two cannot be read as mathematics, or not be compared)."""
    from math_verify import verify

    try:
        wanted, found = _gold(gold), _parse(answer)
        if not wanted or not found:
            return "unparsable"
        return "correct" if verify(list(wanted), list(found), timeout_seconds=None, raise_on_error=True) else "wrong"
    except MemoryError:
        raise
    except Exception:  # sympy raises nearly everything on odd input
        return "unparsable"


def main() -> None:
    """Answers lines until stdin ends. Arguments: the memory limit in MiB, and the longest time in whole seconds for an answer."""
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401  (before `ready`, so that loading it counts into no answer's time)

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
