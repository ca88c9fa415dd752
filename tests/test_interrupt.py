"""Signals as the operating system sends them."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from lgrpo.interrupt import EXIT_PREEMPTED, StopFlag

LOOP = """
import sys, time
from lgrpo.interrupt import EXIT_PREEMPTED, StopFlag
with StopFlag() as stop:
    print("ready", flush=True)
    for _ in range(600):
        if stop.requested and "deaf" not in sys.argv:
            print("saved", flush=True)
            sys.exit(EXIT_PREEMPTED)
        if stop.requested:
            print("heard", flush=True)
        time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_handlers_are_put_back(number, capsys):
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before
    assert signal.Signals(number).name in capsys.readouterr().err


def test_the_second_interrupt_raises():
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with StopFlag(), pytest.raises(KeyboardInterrupt):
        twice()


def test_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="inside"), StopFlag():
        raise RuntimeError("inside")
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_it_is_a_plain_flag():
    seen = []

    def work():
        with StopFlag() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize(("mode", "code"), [("polite", EXIT_PREEMPTED), ("deaf", 128 + signal.SIGTERM)])
def test_a_process_saves_on_the_first_signal_and_dies_on_the_second(mode, code):
    process = subprocess.Popen([sys.executable, "-c", LOOP, mode], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == ("saved\n" if mode == "polite" else "heard\n")
        if mode == "deaf":
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == code
    finally:
        process.kill()
        process.stdout.close()
