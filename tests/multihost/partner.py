"""One of several processes without a run: joins the others, then does what its arguments say at a barrier. For tests of how processes end."""

import os
import signal
import time

from lgrpo import __main__
from lgrpo.errors import UserError
from lgrpo.runs import multihost, partners


def run(argv):
    what = argv[0].split(",")[int(os.environ["JAX_PROCESS_ID"])]
    if what == "asking":
        partners.POLL = 0.0002  # its watcher does nothing else
    multihost.initialize(float(argv[1]))
    multihost.barrier("here")
    if what == "wrong":
        raise UserError("made wrong on purpose")
    if what == "fault":
        raise RuntimeError("a fault on purpose")
    if what == "exit":
        raise SystemExit(3)  # as a reward of somebody's own may
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "killed":
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "late fault":
        time.sleep(2.0)
        raise RuntimeError("a fault on purpose, while the other is done")
    if what == "done":
        return 0
    if what == "waits":
        multihost.barrier("the others never come here")
    multihost.agree_on({"the shape": what}, "test", 20.0)
    return 0


if __name__ == "__main__":
    partners.POLL, partners.GONE = 0.3, 4.0
    __main__.run = run
    __main__.main()
