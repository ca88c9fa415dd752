"""The processes of a run find each other before JAX looks for them: JAX ends a process by SIGABRT when one is missing, and does not say which.

The first process listens on the coordinator's port until all have come or the time is up, and tells the others; then the port is JAX's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

from lgrpo.errors import UserError

_HELLO = "lgrpo"


@contextlib.contextmanager
def impatient(patience: float) -> Iterator[None]:
    """For clusters that JAX finds by itself: ends this process with a line where its native code would abort it. Who is missing only JAX knows."""

    def give_up() -> None:
        said = f"error: {socket.gethostname()}: not all processes of the run came within {patience:g} s; see which host is down, or raise train.start_timeout"
        print(said, file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(patience, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def meet(address: str, processes: int, index: int, patience: float) -> None:
    """Until all are here. address: host:port of process 0. Errors: UserError naming who did not come within `patience` seconds."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + patience
    missing = _listen(int(port), processes, until) if index == 0 else _join(host.strip("[]"), int(port), index, until)
    if missing is None:
        raise UserError(
            f"process {index} ({socket.gethostname()}): process 0 did not answer at {address} within {patience:g} s; "
            "start it, or see its error; train.start_timeout is how long to wait"
        )
    if missing:
        names = ", ".join(map(str, missing))
        raise UserError(
            f"process {index} ({socket.gethostname()}): {len(missing)} of {processes} processes did not come to {address} within {patience:g} s: "
            f"{names}; start them, or see their errors; train.start_timeout is how long to wait"
        )


def _listen(port: int, processes: int, until: float) -> list[int]:
    came: dict[int, socket.socket] = {}
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=processes)
    except OSError as error:
        raise UserError(
            f"the coordinator's port {port} cannot be opened ({error.strerror}); set another in JAX_COORDINATOR_ADDRESS"
        ) from error
    with server:
        while len(came) < processes - 1 and (left := until - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):
                client, _ = server.accept()
                client.settimeout(5.0)
                word, number = client.recv(64).decode().split()
                if word == _HELLO:
                    came[int(number)] = client
        missing = [i for i in range(1, processes) if i not in came]
        for client in came.values():
            with contextlib.suppress(OSError):
                client.sendall((json.dumps(missing) + "\n").encode())
                client.recv(1)  # the other side closes first, which leaves the port free
            client.close()
    return missing


def _join(host: str, port: int, index: int, until: float) -> list[int] | None:
    while (left := until + 5.0 - time.monotonic()) > 0:  # process 0 may have begun a little later
        with contextlib.suppress(OSError, ValueError), socket.create_connection((host, port), timeout=left) as me:
            me.sendall(f"{_HELLO} {index}".encode())
            if line := me.makefile().readline():
                return json.loads(line)
        time.sleep(0.2)
    return None
