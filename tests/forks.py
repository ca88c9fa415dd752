"""Processes that begin with their imports done: a server of this test process, started once, forks one for each command.

A child pays two seconds of processor time for its imports, and the tests start dozens. What is forked is a process of its own, with its arguments,
variables, folder and descriptors; nothing has asked JAX for a backend before. `command` gives what Popen starts in place of the interpreter: a process
of a few milliseconds that lends its descriptors, passes signals on and ends as the other one does, by a code or by a signal.

The forked process runs all that Python has registered for its end, and then leaves: destructors of libraries that were loaded before the fork are not
its own. SIGKILL from outside reaches it a moment after the one that lends has gone. A test of how processes end, or that kills one, starts it itself.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOCKET = "LGRPO_TEST_FORKS"
"""Variable with the server's socket."""
IMPORTED = ("lgrpo.__main__", "lgrpo.train.rl", "lgrpo.train.chain", "lgrpo.evaluation.evaluate", "lgrpo.report.build", "tensorstore")
# Of JAX's variables these are read when a run begins, all others when it is imported.
_LATE = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS")


@functools.cache
def _server():
    """Its socket."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    path = f"{folder.name}/socket"
    command = [sys.executable, str(Path(__file__).resolve()), "serve", path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT)
    process.stdout.readline()

    def stop():
        process.stdin.close()
        process.wait()
        folder.cleanup()

    atexit.register(stop)
    return path


def command(*args):
    """([program, ...], variables) for `python *args`: a script or -m module, and its arguments."""
    return [sys.executable, "-S", "-E", str(Path(__file__).resolve()), "run", *map(str, args)], {SOCKET: _server()}


def _lend(argv):
    """The process that Popen started: lends what it has to one of the server's, and ends as that does."""
    link = socket.socket(socket.AF_UNIX)
    link.connect(os.environ[SOCKET])
    job = json.dumps({"argv": argv, "env": dict(os.environ), "cwd": os.getcwd()}).encode()
    socket.send_fds(link, [len(job).to_bytes(4, "big")], [0, 1, 2])
    link.sendall(job)
    said = link.makefile("r")
    pid = int(said.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    code = int(said.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def _take(link):
    """(job, descriptors) that a process lends."""
    size, descriptors, _, _ = socket.recv_fds(link, 4, 3)
    size, text = int.from_bytes(size, "big"), b""
    while len(text) < size:
        text += link.recv(size - len(text))
    return json.loads(text), descriptors


def _become(job, descriptors):
    """This forked process is what was asked for."""
    for here, there in enumerate(descriptors):
        os.dup2(there, here)
        os.close(there)
    differing = [n for n, value in job["env"].items() if n.startswith("JAX_") and n not in _LATE and value != os.environ.get(n)]
    assert not differing, f"{differing} were read when the server imported JAX"
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    program, *rest = job["argv"]
    if program == "-m":
        sys.path[0], sys.argv = job["cwd"], rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(program).parent), job["argv"]
        runpy.run_path(program, run_name="__main__")


def _end(work):
    """Runs `work` as the interpreter runs a program, to the exit code."""
    code = 0
    try:
        work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _serve(path):
    """Forks until the test process has gone. Returns (job, descriptors) in each forked process, None in the server at its end."""
    gc.set_threshold(50_000, 20, 20)  # as in conftest.py
    for name in IMPORTED:
        __import__(name)
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waking, wakes = os.pipe()
    for end in (waking, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    print("ready", flush=True)
    poll, children = selectors.DefaultSelector(), {}
    for source in (listening, waking, 0):
        poll.register(source, selectors.EVENT_READ)
    while True:
        for key, _ in poll.select():
            if key.fileobj == 0:
                return None
            if key.fileobj == waking:
                os.read(waking, 1024)
            elif key.fileobj is listening:
                link = listening.accept()[0]
                job, descriptors = _take(link)
                if not (pid := os.fork()):
                    signal.set_wakeup_fd(-1)
                    for other in (listening, poll, link, *children.values()):
                        other.close()
                    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                    return job, descriptors
                for descriptor in descriptors:
                    os.close(descriptor)
                link.sendall(f"{pid}\n".encode())
                children[pid] = link
                poll.register(link, selectors.EVENT_READ, pid)
            elif key.data in children:  # whoever lent is gone, by SIGKILL
                os.kill(key.data, signal.SIGKILL)
                poll.unregister(key.fileobj)
        while children and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            link = children.pop(ended[0])
            with contextlib.suppress(KeyError):
                poll.unregister(link)
            with contextlib.suppress(OSError):
                link.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
            link.close()


if __name__ == "__main__":
    if sys.argv[1] == "run":
        _lend(sys.argv[2:])
    elif (work := _serve(sys.argv[2])) is not None:
        _end(functools.partial(_become, *work))
