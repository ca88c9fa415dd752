"""The process in which math-verify (sympy) compares two LaTeX answers. Started by lgrpo.rewards.workers; nothing else imports it.

A line of JSON [gold, answer] on stdin gives a line with the outcome on stdout: see math_rules. The process bounds its own memory; its time
is bounded by the parent, which kills it.
"""

from __future__ import annotations

import json
import logging
import sys

from lgrpo.runs.worker import limit_memory, limit_time, reply_stream

READY = "ready"


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
