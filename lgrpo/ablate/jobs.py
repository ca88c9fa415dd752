"""What a job is on disk, and the command lines that run it here or on another machine."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgrpo.ablate.grid import Job
from lgrpo.config.overrides import to_json
from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.storage import Place, write_text

STEPS = ("train", "eval")
DONE, TIMES, SETTINGS, EXPERIMENT = "done.json", "times.json", "cell.json", "experiment.py"
_DESKS = "~/.cache/lgrpo/ablate"
PYTHON = (sys.executable, "-m", "lgrpo")
_TEXT = '''"""Cell {cell} with seed {seed} of an ablation; its settings are in cell.json beside this file.

Run: python -m lgrpo train {file} --workdir {folder}
"""

import json
from pathlib import Path

from lgrpo.config.overrides import from_json


def get_config():
    return from_json(json.loads(Path(__file__).with_name("cell.json").read_text(encoding="utf-8")), trusted=True)
'''


def _fingerprint(job: Job) -> Any:
    return json.loads(json.dumps(to_json(job.cfg)))


def finished(job: Job) -> bool:
    """Whether the job is trained and evaluated. Errors: UserError when that was with other settings."""
    path = job.folder / DONE
    if not path.exists():
        return False
    if json.loads(path.read_text(encoding="utf-8")) != _fingerprint(job):
        raise UserError(f"{job.folder}: finished with other settings; remove the folder or choose another --workdir")
    return True


def mark_finished(job: Job) -> None:
    write_text(job.folder / DONE, json.dumps(_fingerprint(job), indent=1) + "\n")


def desk(folder: Place) -> Path:
    """Where the files lie that processes of this machine open: the folder itself, or for one in a bucket a folder of this machine."""
    return Path(_DESKS).expanduser() / str(folder).removeprefix("gs://") if storage.remote(folder) else folder


def write_job(job: Job) -> None:
    """The experiment's file and its settings. A folder begun with other settings is refused later, by the run itself."""
    file = desk(job.folder) / EXPERIMENT
    write_text(file, _TEXT.format(cell=job.cell, seed=job.seed, file=file, folder=job.folder))
    write_text(file.with_name(SETTINGS), json.dumps(_fingerprint(job), indent=1) + "\n")
    keep(job)


def keep(job: Job) -> None:
    """Puts what lies on the desk, logs too, into the job's folder, where that is another."""
    if storage.remote(job.folder):
        storage.upload(desk(job.folder), job.folder)


def add_time(job: Job, step: str, wall: float, cpu: float | None) -> None:
    """Adds a process's seconds to those of the job, over all its restarts. cpu: None where it ran on another machine."""
    times = read_times(job)
    was = times.get(step, {})
    times[step] = {"wall_s": round(was.get("wall_s", 0.0) + wall, 2), "starts": was.get("starts", 0) + 1}
    if cpu is not None:
        times[step]["cpu_s"] = round(was.get("cpu_s", 0.0) + cpu, 2)
    write_text(job.folder / TIMES, json.dumps(times, indent=1) + "\n")


def read_times(job: Job) -> dict[str, dict[str, Any]]:
    """Seconds by step: wall_s, cpu_s (user and system), starts."""
    path = job.folder / TIMES
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def command(job: Job, step: str, python: Sequence[str] = PYTHON) -> list[str]:
    """Command line of a step ("train" or "eval") on this machine."""
    return [*python, step, str(desk(job.folder) / EXPERIMENT), "--workdir", str(job.folder)]


def remote_command(
    argv: Sequence[str], host: str, *, index: int, jobs: int, cwd: Path, environment: Mapping[str, str] = os.environ
) -> list[str]:
    """The same through ssh: in the same folder of a shared file system, with this machine's JAX_ and XLA_ variables.

    index of jobs: which share of the host's cores it gets. -tt: the remote process ends when the connection does.
    """
    variables = [f"{name}={value}" for name, value in sorted(environment.items()) if name.startswith(("JAX_", "XLA_"))]
    what = shlex.join(["env", *variables, *argv] if variables else argv)
    if jobs > 1:
        share = f"n=$(nproc); w=$((n / {jobs})); [ $w -ge 1 ] || w=1; a=$(({index} * w % n)); "
        what = f"{share}exec taskset -c $a-$((a + w - 1)) {what}"
    else:
        what = f"exec {what}"
    return ["ssh", "-tt", "-o", "BatchMode=yes", host, f"cd {shlex.quote(str(cwd))} && {{ {what}; }}"]
