"""Runs jobs, one process after another, and pools what they print. Imports nothing large: a child's peak memory begins at its parent's."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.plan import Job

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 3600


def environment(job: Job, cache_dir: Path | None) -> dict[str, str]:
    """The caller's environment without a compilation cache, unless the job is about one, and with the job's number of simulated devices."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE"))}
    env |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if cache_dir is not None:
        env |= {"JAX_COMPILATION_CACHE_DIR": str(cache_dir.resolve()), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    if job.devices > 1:
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={job.devices}".strip()
    return env


def parse(stdout: str) -> dict[str, Any]:
    """The worker's line. Errors: ValueError when the last line is not a JSON object."""
    lines = stdout.strip().splitlines()
    found = json.loads(lines[-1]) if lines else None
    if not isinstance(found, dict):
        raise ValueError("the worker printed no JSON object")
    return found


def interpreter(job: Job) -> Path:
    """Python of the job's environment: this one, or the one that `make` builds for a peer which cannot share it."""
    return Path(sys.executable) if job.venv == "bench" else ROOT / f".venv-{job.venv}" / "bin" / "python"


def run_once(job: Job, logs: Path, cache_dir: Path | None = None) -> dict[str, Any]:
    """One process. Returns its record, or {"error": ...} when it failed; its stderr is in logs/."""
    python = interpreter(job)
    if not python.exists():
        return {"error": f"{python} does not exist; make it with `make .venv-{job.venv}/.run`"}
    args = job.args | {"spawned": time.time()}
    command = [str(python), "-m", "benchmarks.worker", job.worker, json.dumps(args)]
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / (job.key.replace("/", "-") + ".log")
    with log.open("w") as stderr:
        try:
            env = environment(job, cache_dir)
            done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {TIMEOUT_S} s"}
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1:]
        return {"error": f"exit status {done.returncode}: {' '.join(last)} (see {log})"}
    try:
        return parse(done.stdout)
    except ValueError as error:
        return {"error": f"{error} (see {log})"}


def pool(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Several processes of one job as one record: all seconds, the largest peak. An error in one is an error."""
    failed = next((r for r in records if "error" in r), None)
    if failed is not None or len(records) == 1:
        return failed or records[0]
    merged = dict(records[0])
    for name in ("seconds", "cpu_seconds"):
        if name in merged:
            merged[name] = [x for r in records for x in r[name]]
    if "parts" in merged:
        parts = records[0]["parts"]
        merged["parts"] = {
            part: {k: [x for r in records for x in r["parts"][part][k]] for k in ("seconds", "cpu_seconds")}
            | {"first_s": parts[part]["first_s"]}
            for part in parts
        }
    if "marks" in merged:
        merged["marks"] = {name: [x for r in records for x in r["marks"][name]] for name in merged["marks"]}
    merged["peak_rss_bytes"] = max(r["peak_rss_bytes"] for r in records)
    return merged


def _caches(job: Job, folder: Path) -> Iterator[Path | None]:
    """The compilation cache of each process of a job."""
    for index in range(job.processes):
        yield None if job.cache == "off" else folder / (f"cold-{index}" if job.cache == "cold" else "warm")


def run_job(job: Job, out: Path) -> dict[str, Any]:
    """All processes of a job. A warm cache is filled by one more, whose time does not count."""
    folder, logs = out / "cache", out / "logs"
    with contextlib.ExitStack() as stack:
        if job.cache != "off":
            shutil.rmtree(folder, ignore_errors=True)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if job.cache == "warm":
            filled = run_once(job, logs, folder / "warm")
            if "error" in filled:
                return filled
        return pool([run_once(job, logs, cache) for cache in _caches(job, folder)])
