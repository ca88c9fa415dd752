"""Kills a tiny run again and again, and compares it with one that nobody killed: python -m lgrpo selftest resume|soak.

The parent starts lgrpo.selftest.job, waits until it announces a phase chosen at random, waits a random moment longer, sends SIGKILL and starts
it again. Equal means: every line of metrics.jsonl (without time/ and perf/) and every bit of the final state, the buffer and the data position.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lgrpo.errors import UserError
from lgrpo.runs.metrics import FILE, read_metrics

PHASES = ("rollout", "refill", "update", "save", "evaluation", "restore")
_MOST = {"rollout": 5, "refill": 2, "update": 5, "save": 3, "evaluation": 2, "restore": 1}
"""A kill comes at the latest at this announcement of its phase since the start of the process."""
_LAST_UPDATE = 6
"""A process that comes so far without reaching its kill is killed at whatever it announces next."""
FINAL, MARK = "final.json", "selftest:"  # as in selftest.job, which imports JAX
PATIENCE = 900.0
"""Seconds until a job that neither announces anything nor ends counts as hanging."""


@dataclasses.dataclass(frozen=True)
class Job:
    """How to start it."""

    options: tuple[str, ...]
    cache: Path
    env: dict[str, str] = dataclasses.field(default_factory=dict)

    def start(self, workdir: Path) -> subprocess.Popen[str]:
        env = {"JAX_COMPILATION_CACHE_DIR": str(self.cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"} | dict(os.environ)
        command = [sys.executable, "-m", "lgrpo.selftest.job", str(workdir), *self.options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=env | self.env)


@dataclasses.dataclass
class Tally:
    """What was found so far. Lists are only appended to, so threads may share it."""

    passed: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    kills: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    steps: int = 0
    """Lines of metrics compared."""
    memory: list[int] = dataclasses.field(default_factory=list)
    """Resident kilobytes of each job when it was killed."""
    lock: Any = dataclasses.field(default_factory=threading.Lock)

    def check(self, what: str, problem: str, out: Callable[[str], None]) -> bool:
        """Counts one comparison. problem: "" when it passed."""
        with self.lock:
            self.passed += not problem
            if problem:
                self.failures.append(f"{what}: {problem}")
        out(f"{'FAILED' if problem else 'ok'}  {what}{': ' + problem if problem else ''}")
        return not problem


def _resident(pid: int | str) -> int:
    """Kilobytes of memory of a process; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)


def _until(process: subprocess.Popen[str], phase: str, count: int, delay: float, tally: Tally) -> tuple[str, str]:
    """Follows a job and kills it `delay` seconds after it announced `phase` for the count-th time; phase "": never.

    Returns (the phase in which it was killed, "" for not at all; the end of its stderr).
    """
    tail: collections.deque[str] = collections.deque(maxlen=15)
    guard = threading.Timer(PATIENCE, process.kill)
    guard.start()
    killed, seen = "", collections.Counter[str]()
    assert process.stderr is not None
    for line in process.stderr:
        tail.append(line)
        if killed or not phase or not line.startswith(MARK):
            continue
        now = line.split()[-1]
        seen[now] += 1
        if seen[phase] == count or seen["update"] > _LAST_UPDATE:
            time.sleep(delay)
            if now != "restore" and (size := _resident(process.pid)):  # before the first step a job is smaller
                tally.memory.append(size)
            process.send_signal(signal.SIGKILL)
            killed = now
    process.wait()
    guard.cancel()
    return killed if process.returncode == -signal.SIGKILL else "", "".join(tail)


def _lines(workdir: Path) -> list[dict[str, Any]]:
    """Metrics without what a clock measured."""
    if not (workdir / FILE).exists():
        return []
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in read_metrics(workdir)]


def compare_lines(whole: Sequence[dict[str, Any]], parts: Sequence[dict[str, Any]], *, finished: bool) -> str:
    """The first difference of metrics, "" for none. An unfinished run is compared as far as it got."""
    for ours, theirs in zip(whole, parts, strict=False):
        if ours != theirs:
            names = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
            shown = ", ".join(f"{n} is {theirs.get(n)} instead of {ours.get(n)}" for n in names[:3])
            return f"step {ours['step']}: {shown}"
    if len(parts) > len(whole) or (finished and len(parts) != len(whole)):
        return f"{len(parts)} lines of metrics instead of {len(whole)}"
    return ""


def compare_final(whole: Path, parts: Path) -> str:
    """The first difference of the final states, "" for none."""
    ours, theirs = (json.loads((folder / FINAL).read_text()) for folder in (whole, parts))
    for part, values in ours.items():
        if theirs[part] != values:
            differing = [n for n in values if theirs[part].get(n) != values[n]] if part != "data" else []
            return f"{part} differs" + (f" in {', '.join(differing[:3])}" if differing else "")
    return ""


def unbroken(job: Job, workdir: Path) -> list[dict[str, Any]]:
    """The run to compare with. Errors: UserError with the end of its stderr when it fails."""
    process = job.start(workdir)
    _, tail = _until(process, "", 0, 0.0, Tally())
    if process.returncode:
        raise UserError(f"selftest: the run that is not killed failed with exit code {process.returncode}:\n{tail}")
    return _lines(workdir)


def _choose(rng: random.Random, number: int) -> tuple[str, int, float]:
    """(phase, which of its announcements, seconds after that) of a kill. Kills in a row fall in different phases."""
    phase = PHASES[number % len(PHASES)]
    return phase, rng.randint(1, _MOST[phase]), rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.5)))


def kill_loop(
    job: Job,
    whole: Path,
    expect: Sequence[dict[str, Any]],
    folder: Path,
    tally: Tally,
    *,
    rng: random.Random,
    kills: int | None = None,
    deadline: float = float("inf"),
    out: Callable[[str], None],
) -> None:
    """Runs jobs in `folder`/<n>, one after another, until `kills` of them were killed or the deadline (time.monotonic) has passed.

    The last job is always allowed to finish. Every kill is one check (the metrics on disk agree so far), every finished run another two.
    """
    number, runs = rng.randrange(len(PHASES)), 0
    done, workdir = 0, folder / "0"
    while True:
        more = (kills is None or done < kills) and time.monotonic() < deadline
        phase, count, delay = _choose(rng, number) if more else ("", 0, 0.0)
        process = job.start(workdir)
        killed, tail = _until(process, phase, count, delay, tally)
        lines = _lines(workdir)
        if killed:
            number, done = number + 1, done + 1
            with tally.lock:
                tally.kills[killed] += 1
            what = f"kill {done} ({killed}, {delay * 1000:.0f} ms later), {len(lines)} steps on disk"
            tally.check(what, compare_lines(expect, lines, finished=False), out)
            continue
        name = f"run {runs + 1} after {done} kills"
        if process.returncode:
            tally.check(name, f"exit code {process.returncode}:\n{tail}", out)
        else:
            tally.check(f"{name}: metrics of {len(lines)} steps", compare_lines(expect, lines, finished=True), out)
            tally.check(f"{name}: final state", compare_final(whole, workdir), out)
        with tally.lock:
            tally.steps += len(lines)
        if not more or len(tally.failures) > 5:
            return
        runs += 1
        if not tally.failures:
            shutil.rmtree(workdir)
        workdir = folder / str(runs)


def _prepare(workdir: Path | None, options: Sequence[str]) -> tuple[Path, Job, bool]:
    """(folder, job, whether the folder is ours to remove). Errors: UserError for a folder that is not empty."""
    folder = workdir or Path(tempfile.mkdtemp(prefix="lgrpo-selftest-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; give a new --workdir")
    return folder, Job(("--data-dir", str(folder / "data"), *options), folder / "cache"), workdir is None


def _finish(tally: Tally, folder: Path, temporary: bool) -> int:
    """The last line, and the exit code."""
    if temporary and not tally.failures:
        shutil.rmtree(folder)
    elif tally.failures:
        print(f"the runs are in {folder}")
    print(f"{tally.passed} passed, {len(tally.failures)} failed")
    return int(bool(tally.failures))


def resume(*, kills: int, workdir: Path | None, seed: int, options: Sequence[str] = ()) -> int:
    """The resume test. options: further ones of selftest.job. Returns 0 when all agreed, else 1."""
    folder, job, temporary = _prepare(workdir, options)
    expect = unbroken(job, folder / "whole")
    print(f"unbroken run: {len(expect)} steps", flush=True)
    tally = Tally()
    out = lambda text: print(text, flush=True)  # noqa: E731
    kill_loop(job, folder / "whole", expect, folder / "killed", tally, rng=random.Random(seed), kills=kills, out=out)
    print("kills: " + ", ".join(f"{tally.kills[p]} in {p}" for p in PHASES))
    return _finish(tally, folder, temporary)


def soak(*, minutes: float, processes: int, workdir: Path | None, seed: int, options: Sequence[str] = ()) -> int:
    """Kill loops side by side for so many minutes; then what was found, and memory at the start and the end. Exit code as resume."""
    folder, job, temporary = _prepare(workdir, options)
    expect = unbroken(job, folder / "whole")
    tally, before, deadline = Tally(), _resident("self"), time.monotonic() + 60 * minutes
    print(f"unbroken run: {len(expect)} steps; {processes} processes side by side for {minutes:g} minutes", flush=True)

    def loop(index: int) -> None:
        out = lambda text: print(f"[{index}] {text}", flush=True)  # noqa: E731
        where, rng = folder / f"killed{index}", random.Random(1000 * seed + index)
        try:
            kill_loop(job, folder / "whole", expect, where, tally, rng=rng, deadline=deadline, out=out)
        except Exception as error:  # a thread's error would go unseen
            tally.check(f"process {index}", f"{type(error).__name__}: {error}", out)

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = _resident("self")
    kills = sum(tally.kills.values())
    print(f"kills survived: {kills} (" + ", ".join(f"{tally.kills[p]} in {p}" for p in PHASES) + ")")
    print(f"steps compared: {tally.steps}")
    print(f"differences found: {len(tally.failures)}")
    if tally.memory:
        tenth = max(1, len(tally.memory) // 10)
        first, last = (sum(part) / len(part) / 1024 for part in (tally.memory[:tenth], tally.memory[-tenth:]))
        print(f"memory of a job when killed, start and end: {first:.0f} MiB, {last:.0f} MiB")
    print(f"memory of this process, start and end: {before / 1024:.0f} MiB, {after / 1024:.0f} MiB")
    return _finish(tally, folder, temporary)
