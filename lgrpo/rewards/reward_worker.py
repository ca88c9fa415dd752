"""The process in which a user's reward runs that asks for it (reward.in_workers). Started by lgrpo.rewards.workers.

Arguments: the memory limit in MiB, the longest time of a completion in whole seconds, the reward's name. A line of JSON [text, gold, sample] on stdin
gives a line of JSON on stdout: the number, or what went wrong.
"""

from __future__ import annotations

import json
import sys

from lgrpo.rewards.math_worker import READY
from lgrpo.rewards.reward import call, find_reward
from lgrpo.rewards.sample import Sample
from lgrpo.runs.worker import limit_memory, limit_time, reply_stream


def main() -> None:
    """Answers lines until stdin ends."""
    replies = reply_stream()
    reward = find_reward(sys.argv[3])
    limit_memory(int(sys.argv[1]))
    print(READY, file=replies, flush=True)
    for line in sys.stdin:
        limit_time(int(sys.argv[2]))
        text, gold, sample = json.loads(line)
        print(json.dumps(call(reward, text, gold, Sample(**json.loads(sample)))), file=replies, flush=True)


if __name__ == "__main__":
    main()
