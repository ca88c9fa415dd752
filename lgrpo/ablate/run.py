"""Runs jobs as processes, a few at a time, each on its own cores or on a host of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lgrpo.ablate import jobs as on_disk
from lgrpo.ablate.grid import Job
from lgrpo.errors import UserError
from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag
from lgrpo.runs.storage import Place

_POLL_S = 0.1
_LOCK_S = 10.0  # killed runs need a moment to go
_CHILD = Path(__file__).with_name("child.py")


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one job at a time: cores of this machine (none given: wherever the system likes), or a share of a host."""

    cores: tuple[int, ...] = ()
    host: str = ""
    index: int = 0
    of: int = 1

    def __str__(self) -> str:
        return self.host or (f"core {','.join(map(str, self.cores))}" if self.cores else "this machine")


@dataclasses.dataclass
class Outcome:
    """Names of jobs by how they ended. `failed` says why."""

    finished: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    interrupted: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def code(self) -> int:
        """75 when something is to be gone on with, 1 when a job failed, else 0."""
        return EXIT_PREEMPTED if self.interrupted else 1 if self.failed else 0


@dataclasses.dataclass
class _Running:
    job: Job
    slot: Slot
    step: str
    process: subprocess.Popen[bytes]
    began: float


def own_cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def make_slots(jobs: int, hosts: Sequence[str], cores: Sequence[int]) -> list[Slot]:
    """jobs: at once, on each host when there are hosts; 0: as many as cores, one per host. All get the same number of cores.

    Errors: UserError for more jobs than cores.
    """
    if hosts:
        each = jobs or 1
        return [Slot(host=host, index=i, of=each) for i in range(each) for host in hosts]
    jobs = jobs or len(cores)
    if jobs > len(cores):
        raise UserError(f"--jobs {jobs}: only {len(cores)} core(s) here; use at most {len(cores)}")
    share = len(cores) // jobs
    return [Slot(cores=tuple(cores[i * share : (i + 1) * share])) for i in range(jobs)]


@contextlib.contextmanager
def locked(workdir: Place) -> Iterator[int]:
    """Only one ablation of this machine works in a folder. Its runs inherit the lock, so one that outlived its ablation keeps the next from starting.

    Yields the file descriptor. Errors: UserError.
    """
    desk = on_disk.desk(workdir)
    desk.mkdir(parents=True, exist_ok=True)
    with (desk / ".lock").open("w") as file:
        until = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(f"{workdir}: another ablation, or a run of one, works there; wait for it or stop it") from None
                time.sleep(_POLL_S)
        yield file.fileno()


def _start(job: Job, slot: Slot, step: str, lock: int, python: Sequence[str]) -> _Running:
    argv = on_disk.command(job, step, python)
    if slot.host:
        argv = on_disk.remote_command(argv, slot.host, index=slot.index, jobs=slot.of, cwd=Path.cwd())

    wrapper = [sys.executable, "-S", str(_CHILD), str(os.getpid()), ",".join(map(str, slot.cores)) or "-"]
    with (on_disk.desk(job.folder) / f"{step}.log").open("ab") as log:
        # A session of its own: Ctrl-C reaches it only through us, once.
        process = subprocess.Popen(
            [*wrapper, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock,)
        )
    return _Running(job, slot, step, process, time.monotonic())


def _ended(run: _Running) -> int | None:
    """Exit code of the process (negative: its signal), None while it runs. Its seconds are added to the job's."""
    pid, status, usage = os.wait4(run.process.pid, os.WNOHANG)
    if not pid:
        return None
    run.process.returncode = os.waitstatus_to_exitcode(status)
    cpu = None if run.slot.host else usage.ru_utime + usage.ru_stime
    on_disk.keep(run.job)
    on_disk.add_time(run.job, run.step, time.monotonic() - run.began, cpu)
    return run.process.returncode


def _why(run: _Running, code: int) -> str:
    """The end of its log in one line."""
    log = on_disk.desk(run.job.folder) / f"{run.step}.log"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{run.step}: {how}; {lines[-1][-300:] if lines else 'no output'} ({log})"


def run_jobs(todo: Sequence[Job], slots: Sequence[Slot], workdir: Place, *, python: Sequence[str] = on_disk.PYTHON) -> Outcome:
    """Trains and evaluates every job that is not finished. A failed one is reported and the rest goes on.

    The first signal lets the runs save and stop, the second one ends them. Errors: UserError before anything starts, for jobs finished with
    other settings or a workdir in use.
    """
    outcome = Outcome()
    with locked(workdir) as lock:
        waiting = []
        for job in todo:
            if on_disk.finished(job):
                outcome.skipped.append(job.name)
            else:
                waiting.append(job)
        if outcome.skipped:
            print(f"{len(outcome.skipped)} of {len(todo)} runs are finished already", file=sys.stderr)
        with StopFlag() as stop:
            _work(waiting, list(slots), lock, python, stop, outcome)
    return outcome


def _work(waiting: list[Job], free: list[Slot], lock: int, python: Sequence[str], stop: StopFlag, outcome: Outcome) -> None:
    running: list[_Running] = []
    told = False
    try:
        while running or (waiting and not stop):
            if stop and not told:
                told = True
                for run in running:
                    run.process.terminate()
            while waiting and free and not stop:
                job, slot = waiting.pop(0), free.pop(0)
                on_disk.write_job(job)
                print(f"{job.name}: starts on {slot}", file=sys.stderr)
                running.append(_start(job, slot, on_disk.STEPS[0], lock, python))
            for run in list(running):
                code = _ended(run)
                if code is None:
                    continue
                running.remove(run)
                if (following := _after(run, code, bool(stop), outcome)) is None:
                    free.append(run.slot)
                else:
                    running.append(_start(run.job, run.slot, following, lock, python))
            time.sleep(_POLL_S)
    finally:
        for run in running:  # only after a second signal or an error of ours
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()
    outcome.interrupted += [job.name for job in waiting]


def _after(run: _Running, code: int, stopping: bool, outcome: Outcome) -> str | None:
    """Books the end of a process. Returns the next step of its job, if it has one now."""
    job = run.job
    if code == 0 and run.step != on_disk.STEPS[-1]:
        if stopping:
            outcome.interrupted.append(job.name)
            return None
        return on_disk.STEPS[on_disk.STEPS.index(run.step) + 1]
    if code == 0:
        on_disk.mark_finished(job)
        outcome.finished.append(job.name)
        seconds = ", ".join(f"{step} {t['wall_s']:.0f} s" for step, t in on_disk.read_times(job).items())
        print(f"{job.name}: finished ({seconds})", file=sys.stderr)
    elif code == EXIT_PREEMPTED or stopping:
        outcome.interrupted.append(job.name)
        print(f"{job.name}: stopped", file=sys.stderr)
    else:
        outcome.failed[job.name] = _why(run, code)
        print(f"{job.name}: FAILED: {outcome.failed[job.name]}", file=sys.stderr)
    return None
