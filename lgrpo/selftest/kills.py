"""Harms a tiny run again and again, and compares it with one that nobody harmed: python -m lgrpo selftest resume|soak.

The parent starts lgrpo.selftest.job, waits until it announces a phase chosen at random, waits a random moment longer, does one of FAULTS and starts
it again where it ended. Equal means: every line of metrics.jsonl (without time/ and perf/) and every bit of the final state, the buffer and the data
position. The runs may lie in a bucket; what the processes share beside them stays on this machine.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.storage import PathLike, Place
from lgrpo.selftest.same import compare_final, compare_lines, leftovers, lines, lost, saved

PHASES = ("rollout", "refill", "update", "save", "evaluation", "restore")
_MOST = {"rollout": 5, "refill": 2, "update": 5, "save": 3, "evaluation": 2, "restore": 1}
"""A kill comes at the latest at this announcement of its phase since the start of the process."""
_LAST_UPDATE = 6
"""A process that comes so far without reaching its kill is killed at whatever it announces next."""
FAULTS = ("kill", "stop", "full", "damage")
"""SIGKILL to one of its processes; SIGSTOP to one for some seconds; files that cannot grow any more; SIGKILL, and then the newest checkpoint damaged."""
MARK = "selftest:"  # as in selftest.job
_ROOM = 512
"""Bytes that a file may have on a disk that is full."""
_DATELESS = ("commit_success.txt", "_CHECKPOINT_METADATA")  # hold no data: damage there changes nothing
PATIENCE = 900.0
"""Seconds until a job that neither announces anything nor ends counts as hanging."""


@dataclasses.dataclass(frozen=True)
class Job:
    """How to start it."""

    options: tuple[str, ...]
    desk: Path
    """A folder of this machine: data, compiled programs and logs."""
    processes: int = 1
    """More than one: on CPU, each with devices of its own."""

    def start(self, workdir: Place) -> list[subprocess.Popen[str]]:
        """Its processes; the first one's stderr is a pipe, those of the others are files on the desk."""
        cache = {"JAX_COMPILATION_CACHE_DIR": str(self.desk / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
        env = cache | dict(os.environ)
        command = [sys.executable, "-m", "lgrpo.selftest.job", str(workdir), "--data-dir", str(self.desk / "data"), *self.options]
        common: dict[str, Any] = {"stdout": subprocess.DEVNULL, "text": True, "errors": "replace"}
        if self.processes == 1:
            return [subprocess.Popen(command, stderr=subprocess.PIPE, env=env, **common)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_PROCESSES": str(self.processes), "JAX_COORDINATOR_ADDRESS": address}
        found = []
        self.desk.mkdir(parents=True, exist_ok=True)
        for index in range(self.processes):
            with contextlib.ExitStack() as stack:
                log = stack.enter_context((self.desk / f"{workdir.parent.name}-process{index}.log").open("w")) if index else subprocess.PIPE
                found.append(subprocess.Popen(command, stderr=log, env=env | {"JAX_PROCESS_ID": str(index)}, **common))
        return found


@dataclasses.dataclass
class Tally:
    """What was found so far. Lists are only appended to, so threads may share it."""

    passed: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    kills: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to a job: `fault`, `delay` seconds after it announced `phase` for the count-th time. phase "": nothing."""

    phase: str = ""
    count: int = 0
    delay: float = 0.0
    fault: str = "kill"
    victim: int = 0
    """Which of its processes, modulo their number."""
    pause: float = 0.0
    """Seconds between SIGSTOP and SIGCONT."""


def _harm(processes: Sequence[subprocess.Popen[str]], plan: Plan) -> None:
    victim = processes[plan.victim % len(processes)]
    if plan.fault == "stop":
        victim.send_signal(signal.SIGSTOP)
        time.sleep(plan.pause)
        victim.send_signal(signal.SIGCONT)
    elif plan.fault == "full":
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (_ROOM, _ROOM))
    else:
        victim.send_signal(signal.SIGKILL)


def _until(processes: Sequence[subprocess.Popen[str]], plan: Plan, tally: Tally) -> tuple[str, str]:
    """Follows a job to its end and harms it as planned. Returns (the phase in which that was, "" for not at all; the end of its stderr)."""
    tail: collections.deque[str] = collections.deque(maxlen=15)
    guards = [threading.Timer(PATIENCE, process.kill) for process in processes]
    for guard in guards:
        guard.start()
    harmed, seen = "", collections.Counter[str]()
    assert processes[0].stderr is not None
    for line in processes[0].stderr:
        tail.append(line)
        if harmed or not plan.phase or not line.startswith(MARK):
            continue
        now = line.split()[-1]
        seen[now] += 1
        if seen[plan.phase] == plan.count or seen["update"] > _LAST_UPDATE:
            time.sleep(plan.delay)
            if now != "restore" and (size := _resident(processes[0].pid)):  # before the first step a job is smaller
                tally.memory.append(size)
            _harm(processes, plan)
            harmed = now
    for process, guard in zip(processes, guards, strict=True):
        process.wait()
        guard.cancel()
    return harmed, "".join(tail)


def _damage(workdir: Place, rng: random.Random) -> str:
    """A flipped byte in the newest checkpoint, where there is one before it to go back to. Returns the file, "" for none."""
    steps = saved(workdir)
    if len(steps) < 2:
        return ""
    folder = workdir / "checkpoints" / str(steps[-1])
    found = {name: (folder / name).read_bytes() for name in storage.files_below(folder) if os.path.basename(name) not in _DATELESS}
    name = rng.choice([name for name, data in found.items() if data])
    data = bytearray(found[name])
    data[rng.randrange(len(data))] ^= 0xFF
    storage.write_bytes(folder / name, bytes(data))
    return f"{folder / name}"


def unbroken(job: Job, workdir: Place) -> list[dict[str, Any]]:
    """The run to compare with. Errors: UserError with the end of its stderr when it fails."""
    processes = job.start(workdir)
    _, tail = _until(processes, Plan(), Tally())
    if any(process.returncode for process in processes):
        raise UserError(f"selftest: the run that is not killed failed with exit code {processes[0].returncode}:\n{tail}")
    return lines(workdir)


def _choose(rng: random.Random, number: int, faults: Sequence[str]) -> Plan:
    """Faults in a row fall in different phases. Kills are most of them."""
    phase = PHASES[number % len(PHASES)]
    count, delay = rng.randint(1, _MOST[phase]), rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.5)))
    fault = rng.choice((*faults, "kill", "kill"))
    return Plan(phase, count, delay, fault, rng.randrange(8), rng.uniform(0.5, 4.0))


def _ended_as_planned(processes: Sequence[subprocess.Popen[str]], plan: Plan, tail: str) -> str:
    """What is wrong with how a harmed job ended, "" for nothing."""
    codes = [process.returncode for process in processes]
    last = tail.rstrip().rpartition("\n")[2]
    if plan.fault == "full":
        good = 2 in codes and all(code in (1, 2) for code in codes) and (codes[0] == 1 or last.startswith("error:"))
    else:
        victim = plan.victim % len(codes)
        good = codes[victim] in (-signal.SIGKILL, 0) and all(code in (0, 1) for i, code in enumerate(codes) if i != victim)
    return "" if good else f"exit codes {codes}:\n{tail}"


def _after_fault(
    what: str, plan: Plan, workdir: Place, expect: Sequence[dict[str, Any]], least: int | None, tally: Tally, out: Callable[[str], None]
) -> int | None:
    """What is on disk once a fault ended a job. least: the newest checkpoint at the fault before. Returns the newest now; None: do not ask again."""
    found = lines(workdir)
    problem = compare_lines(expect, found, finished=False) or ("" if least is None else lost(workdir, least))
    tally.check(f"{what}, {len(found)} steps on disk", problem, out)
    return None if least is None or plan.fault == "damage" else max(saved(workdir), default=0)


def kill_loop(
    job: Job,
    whole: Place,
    expect: Sequence[dict[str, Any]],
    folder: Place,
    tally: Tally,
    *,
    rng: random.Random,
    kills: int | None = None,
    deadline: float = float("inf"),
    out: Callable[[str], None],
    faults: Sequence[str] = ("kill",),
) -> None:
    """Runs jobs in `folder`/<n>, one after another, until `kills` of them were harmed or the deadline (time.monotonic) has passed.

    The last job is always allowed to finish. Every fault that ends a job is two checks (how it ended, and the files on disk are right so far), every
    finished run another two.
    """
    number, runs = rng.randrange(len(PHASES)), 0
    done, workdir, least = 0, folder / "0", 0
    while True:
        more = (kills is None or done < kills) and time.monotonic() < deadline
        plan = _choose(rng, number, faults) if more else Plan()
        processes = job.start(workdir)
        harmed, tail = _until(processes, plan, tally)
        finished = all(process.returncode == 0 for process in processes)
        if harmed:
            number, done = number + 1, done + 1
            with tally.lock:
                tally.kills[harmed] += 1
                tally.faults[plan.fault] += 1
        if harmed and not finished and plan.fault != "stop":
            what = f"{plan.fault} {done} ({harmed}, {plan.delay * 1000:.0f} ms later)"
            least = _after_fault(what, plan, workdir, expect, least, tally, out)
            if problem := _ended_as_planned(processes, plan, tail):
                tally.check(f"{plan.fault} {done}", problem, out)
                return
            if plan.fault == "damage" and (file := _damage(workdir, rng)):
                out(f"    damaged {file}")
            continue
        name = f"run {runs + 1} after {done} faults"
        if not finished:
            tally.check(name, f"exit codes {[process.returncode for process in processes]}:\n{tail}", out)
        else:
            found = lines(workdir)
            tally.check(f"{name}: metrics of {len(found)} steps", compare_lines(expect, found, finished=True), out)
            tally.check(f"{name}: final state", compare_final(whole, workdir) or leftovers(workdir), out)
            tally.steps += len(found)
        if not more or len(tally.failures) > 5:
            return
        if not tally.failures:
            storage.remove_folder(workdir)
        runs, least = runs + 1, 0
        workdir = folder / str(runs)


def _prepare(workdir: PathLike | None, options: Sequence[str]) -> tuple[Place, Job, Path | None]:
    """(folder of the runs, job, what goes at the end). Errors: UserError for a folder that is not empty."""
    folder = storage.place(workdir or tempfile.mkdtemp(prefix="lgrpo-selftest-"))
    with storage.explained(folder):
        if storage.files_below(folder):
            raise UserError(f"{folder}: not empty; give a new --workdir")
    desk = folder if isinstance(folder, Path) else Path(tempfile.mkdtemp(prefix="lgrpo-selftest-"))
    return folder, Job(tuple(options), desk), None if workdir and desk == folder else desk


def _finish(tally: Tally, folder: Place, temporary: Path | None) -> int:
    """The last line, and the exit code."""
    if tally.failures:
        print(f"the runs are in {folder}")
    elif temporary:
        shutil.rmtree(temporary)
    print(f"{tally.passed} passed, {len(tally.failures)} failed")
    return int(bool(tally.failures))


def resume(*, kills: int, workdir: PathLike | None, seed: int, options: Sequence[str] = ()) -> int:
    """The resume test. options: further ones of selftest.job. Returns 0 when all agreed, else 1."""
    folder, job, temporary = _prepare(workdir, options)
    expect = unbroken(job, folder / "whole")
    print(f"unbroken run: {len(expect)} steps; seed {seed} chooses the moments", flush=True)
    tally = Tally()
    out = lambda text: print(text, flush=True)  # noqa: E731
    kill_loop(job, folder / "whole", expect, folder / "killed", tally, rng=random.Random(seed), kills=kills, out=out)
    print("kills: " + ", ".join(f"{tally.kills[p]} in {p}" for p in PHASES))
    return _finish(tally, folder, temporary)


def soak(*, minutes: float, processes: int, workdir: PathLike | None, seed: int, options: Sequence[str] = ()) -> int:
    """Jobs side by side for so many minutes, all FAULTS mixed (in a bucket no full disk), the last job of two processes. Exit code as resume."""
    folder, job, temporary = _prepare(workdir, options)
    jobs = [job] * (processes - 1) + [dataclasses.replace(job, processes=2)]
    names = ["whole"] * (processes - 1) + ["whole_two"]
    expected = {name: unbroken(each, folder / name) for name, each in dict(zip(names, jobs, strict=True)).items()}
    faults = [fault for fault in FAULTS if fault != "full" or not storage.remote(folder)]
    tally, before, deadline = Tally(), _resident("self"), time.monotonic() + 60 * minutes
    print(f"unbroken runs are done; seed {seed} chooses the moments", flush=True)
    print(f"{processes} jobs side by side for {minutes:g} minutes, one of them of two processes", flush=True)

    def loop(index: int) -> None:
        out = lambda text: print(f"[{index}] {text}", flush=True)  # noqa: E731
        where, rng = folder / f"killed{index}", random.Random(1000 * seed + index)
        try:
            name = names[index]
            kill_loop(jobs[index], folder / name, expected[name], where, tally, rng=rng, deadline=deadline, out=out, faults=faults)
        except Exception as error:  # a thread's error would go unseen
            tally.check(f"job {index}", f"{type(error).__name__}: {error}", out)

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = _resident("self")
    print("faults survived: " + ", ".join(f"{tally.faults[f]} {f}" for f in faults))
    print(f"phases: {sum(tally.kills.values())} (" + ", ".join(f"{tally.kills[p]} in {p}" for p in PHASES) + ")")
    print(f"steps compared: {tally.steps}")
    print(f"differences found: {len(tally.failures)}")
    if tally.memory:
        tenth = max(1, len(tally.memory) // 10)
        first, last = (sum(part) / len(part) / 1024 for part in (tally.memory[:tenth], tally.memory[-tenth:]))
        print(f"memory of a job when killed, start and end: {first:.0f} MiB, {last:.0f} MiB")
    print(f"memory of this process, start and end: {before / 1024:.0f} MiB, {after / 1024:.0f} MiB")
    return _finish(tally, folder, temporary)
