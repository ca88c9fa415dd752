"""Streams that are closed, gone or never open do not end a run; signals are told from each other, and the last line says what to do."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lgrpo.runs import interrupt, output
from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag
from lgrpo.runs.metrics import progress

RUN = """
import sys
from lgrpo import __main__
from lgrpo.runs import interrupt

def run(argv):
    with interrupt.StopFlag() as stop:
        print("ready", flush=True)
        for step in range(200):
            print("x" * 2000, file=sys.stderr)
            print("y" * 2000, flush=True)
    with open(argv[0], "w") as file:
        file.write("finished")
    return 0

__main__.run = run
__main__.main()
"""


def test_closed_pipes_do_not_end_a_run(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "done")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 0
    assert (tmp_path / "done").read_text() == "finished"


@pytest.mark.parametrize("redirect", ["2>&-", ">&-", "2>&- >&- <&-", "2>/dev/full"])
def test_descriptors_that_were_never_open(tmp_path, redirect):
    command = f'"{sys.executable}" -c "$PROGRAM" {tmp_path / "done"} {redirect}'
    done = subprocess.run(["sh", "-c", command], env=os.environ | {"PROGRAM": RUN}, check=False, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    assert (tmp_path / "done").read_text() == "finished", "what was printed ended in a file of the run"


def test_a_broken_stream_is_left_alone_afterwards():
    read, write = os.pipe()
    os.close(read)
    stream = output.Tolerant(open(write, "w"))  # noqa: SIM115
    for _ in range(3):
        print("lost", file=stream, flush=True)
    os.write(write, b"native code too")  # no EPIPE: it leads to /dev/null now
    stream._stream.close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_signals_that_only_ask(number):
    """Twice is not once more: a terminal that goes away sends SIGHUP from two sides. Then SIGTERM, which is the first that insists."""
    with StopFlag() as stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested


def test_nohup_stays_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopFlag() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_bar_in_a_log_file_is_a_line_a_minute(capsys):
    with progress(1000, "rl", True) as bar:
        for step in range(1000):
            bar.set_postfix(reward=f"{step}")
            bar.update()
    said = capsys.readouterr().err
    assert "\r" not in said and len(said.splitlines()) <= 3, said
    assert "1000/1000" in said.splitlines()[-1]


def test_the_exit_codes_are_documented_and_interrupt_has_its_own():
    from lgrpo import __main__

    assert EXIT_PREEMPTED == 75 and all(f"{code} " in __main__._USAGE for code in (0, 1, 2, 75))
    assert interrupt._INSISTING == (signal.SIGINT, signal.SIGTERM)


def test_a_fault_of_the_program_is_a_traceback_and_1(monkeypatch, capsys):
    from lgrpo import __main__

    monkeypatch.setattr(__main__, "run", lambda _: [][1])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and said[0].startswith("Traceback") and said[-1].startswith("IndexError")
    with contextlib.suppress(SystemExit):
        monkeypatch.setattr(__main__, "run", lambda _: Path("/nonexistent/file").read_text())
        __main__.main()
    assert capsys.readouterr().err.startswith("error: [Errno 2] No such file or directory: '/nonexistent/file'; mend that")


def test_what_fails_later_does_not_write_below_the_last_line():
    """A save that failed leaves threads behind that fail after it: seen in a soak, as a traceback below the error."""
    code = (
        "import logging, sys, threading, time\n"
        "from lgrpo.cli.common import ended\n"
        "from lgrpo.errors import UserError\n"
        "def later():\n"
        "    time.sleep(0.3)\n"
        "    logging.getLogger('absl').error('late news')\n"
        "    raise ValueError('Error writing local file')\n"
        "def work():\n"
        "    threading.Thread(target=later).start()\n"
        "    raise UserError('saving step 3 failed')\n"
        "sys.exit(ended(work))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == "error: saving step 3 failed"
