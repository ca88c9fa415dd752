"""What stands for a process in other tests is one: its own arguments, variables, descriptors, end."""

import os
import signal
import subprocess
import time

import forks
import pytest
from flags import flags

SAYS = """
import os, sys
print(sys.argv[1:], os.environ["MINE"], os.getcwd(), os.getpid())
print(sys.stdin.read(), file=sys.stderr)
import jax
print(jax.device_count())
sys.exit(7)
"""
WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("here", flush=True)
time.sleep(60)
"""


def start(script, *args, **env):
    program, more = forks.command(script, *args)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(program, env=os.environ | {"XLA_FLAGS": flags(3)} | more | env, cwd=script.parent, **pipes)


def test_a_process_of_its_own(tmp_path):
    (tmp_path / "says.py").write_text(SAYS)
    process = start(tmp_path / "says.py", "a b", "c", MINE="x")
    out, err = process.communicate("hello")
    said, devices = out.splitlines()
    assert process.returncode == 7 and said.startswith(f"['a b', 'c'] x {tmp_path} ") and err.strip() == "hello"
    assert int(said.split()[-1]) not in (process.pid, os.getpid()) and devices == "3"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_signals_reach_it(tmp_path, number, code):
    (tmp_path / "waits.py").write_text(WAITS)
    process = start(tmp_path / "waits.py")
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    assert process.stdout.read() == "", "the pipe closes when nobody holds it any more"


def test_its_own_signal_is_how_it_ends(tmp_path):
    (tmp_path / "kills.py").write_text("import os; os.kill(os.getpid(), 9)")
    began = time.monotonic()
    assert start(tmp_path / "kills.py").wait(timeout=20) == -9 and time.monotonic() - began < 20
