"""Signals as the operating system sends them."""

import signal
import subprocess
import sys
import threading

import pytest

from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag

LOOP = """
import sys, time
from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag
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
        signal.raise_signal(number)  # to this thread: os.kill may come back before the signal has
        assert stop.requested
    assert signal.getsignal(number) is before
    assert signal.Signals(number).name in capsys.readouterr().err


DEAF = """
import hashlib
from lgrpo.runs.interrupt import StopFlag
with StopFlag():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes, without a look at Python's signal handlers
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_process_inside_a_long_call(number):
    process = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    finally:
        process.kill()
        process.stdout.close()


def test_the_old_wakeup_comes_back_and_no_thread_stays():
    before = threading.active_count()
    with StopFlag(), StopFlag():
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
    assert signal.set_wakeup_fd(-1) == -1


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
