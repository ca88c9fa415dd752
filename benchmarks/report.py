"""Tables: what was measured, as Markdown between markers in a document that is otherwise written by hand."""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bars import describe
from benchmarks.plan import LATENT_SHAPES, SWEEPS, TITLES, growth_key, latent_key
from benchmarks.timing import spread

Section = dict[str, Any]
Record = dict[str, Any]


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits without an exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table, numbers to the right of the first column."""
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _quartiles(seconds: list[float], unit: float = 1.0) -> str:
    low, high = spread(seconds)["quartiles_s"]
    return f"{number(low * unit)} - {number(high * unit)}"


def _median(record: Record) -> float:
    return spread(record["seconds"])["median_s"]


def _gigabytes(record: Record) -> str:
    return number(record["peak_rss_bytes"] / 1e9)


def _cpu(record: Record) -> str:
    return number(spread(record["cpu_seconds"])["median_s"])


def _failed(key: str, record: Record, width: int) -> list[str]:
    return [key, "failed: " + record["error"].replace("|", "/")[:120]] + ["-"] * (width - 2)


def _timed(jobs: dict[str, Record], *, rate: bool) -> str:
    columns = ["runner", "s, median", "quartiles", "n", "CPU s", "first call s", "peak RSS GB"] + (
        ["tokens/s"] if rate else ["loss", "gradient norm"]
    )
    rows = []
    for key, record in jobs.items():
        name = key.split("/", 1)[1]
        if "error" in record:
            rows.append(_failed(name, record, len(columns)))
            continue
        seconds = record["seconds"]
        row = [
            name,
            number(_median(record)),
            _quartiles(seconds),
            str(len(seconds)),
            _cpu(record),
            number(record["first_s"]),
            _gigabytes(record),
        ]
        more = [number(record["tokens"] / _median(record))] if rate else [f"{record['loss']:.6f}", f"{record['grad_norm']:.5f}"]
        rows.append(row + more)
    return markdown(columns, rows)


def _uneven(jobs: dict[str, Record]) -> str:
    lengths = [
        f"{key.split('/', 1)[1]}: lengths of its last batch, quartiles {', '.join(map(str, r['length_quartiles']))}, longest {r['longest']}"
        for key, r in jobs.items()
        if "longest" in r
    ]
    return "\n\n".join([_timed(jobs, rate=True), *lengths[:1]])


def _latent(jobs: dict[str, Record]) -> str:
    names = ("exact", "paper", "token", "torch", "jax-sort")
    labels = {"token": "plain token", "torch": "authors' operations, torch", "jax-sort": "authors' operations, JAX"}
    columns = ["step"] + [f"[{r}, {v}] ms (quartiles; n)" for r, v in LATENT_SHAPES]
    rows = []
    for name in names:
        cells = []
        for shape in LATENT_SHAPES:
            record = jobs.get(latent_key(name, *shape), {"error": "-"})
            seconds = record.get("seconds")
            cells.append(
                f"{number(_median(record) * 1e3)} ({_quartiles(seconds, 1e3)}; {len(seconds)})" if seconds else record["error"][:80]
            )
        rows.append([labels.get(name, f"lgrpo, {name}"), *cells])
    return markdown(columns, rows)


def _parts(jobs: dict[str, Record]) -> str:
    rows = []
    for key, record in jobs.items():
        name = key.split("/", 1)[1]
        if "error" in record:
            rows.append(_failed(name, record, 6))
            continue
        for part, found in record["parts"].items():
            seconds = found["seconds"]
            row = [f"{name}: {part}", number(_median(found) * 1e3), _quartiles(seconds, 1e3), str(len(seconds)), number(found["first_s"])]
            rows.append([*row, _rate(record, part, _median(found))])
    table = markdown(["part", "ms, median", "quartiles", "n", "first call s", "rate"], rows)
    shapes = [f"{key.split('/', 1)[1]}: {record['shape']}" for key, record in jobs.items() if "shape" in record]
    return "\n\n".join([table, *shapes])


def _listed(jobs: dict[str, Record]) -> str:
    """A table whose rows the workers made."""
    failed = [f"{key} failed: {record['error'][:120]}" for key, record in jobs.items() if "error" in record]
    made = [record for record in jobs.values() if "error" not in record]
    tables = [markdown(made[0]["columns"], [row for record in made for row in record["rows"]])] if made else []
    return "\n\n".join(tables + failed)


def _rate(record: Record, part: str, seconds: float) -> str:
    if part == "matmul":
        return f"{number(record['flop'] / seconds / 1e9)} GFLOP/s"
    return f"{number(record['bytes'] / seconds / 1e9)} GB/s" if part == "copy" else "-"


def _point(record: Record, show: Callable[[Record], str]) -> str:
    """A cell of a record that may be missing or failed."""
    if not record:
        return "-"
    return "failed" if "error" in record else show(record)


def _seconds_cell(record: Record) -> str:
    return f"{number(_median(record))} ({_quartiles(record['seconds'])})"


def _growth(jobs: dict[str, Record]) -> str:
    tables = []
    for name, (label, values) in SWEEPS.items():
        rows = []
        for value in values:
            rollout, update = (jobs.get(growth_key(worker, **{name: value}), {}) for worker in ("rollout", "update"))
            rate = _point(rollout, lambda r: number(r["tokens"] / _median(r)))
            cells = [_point(r, show) for r in (rollout, update) for show in (_seconds_cell, _gigabytes)]
            rows.append([str(value), rate, *cells])
        tables.append(
            markdown([label, "tokens/s", "rollout s (quartiles)", "rollout RSS GB", "update s (quartiles)", "update RSS GB"], rows)
        )
    rows = []
    for cache in ("cold", "warm"):
        record = jobs.get(f"E/start-{cache}", {})
        stages = ", ".join(f"{name} {number(spread(times)['median_s'])}" for name, times in record.get("marks", {}).items())
        rows.append(
            [f"{cache} compilation cache", _point(record, _seconds_cell), _point(record, lambda r: str(len(r["seconds"]))), stages or "-"]
        )
    return "\n\n".join(
        [*tables, markdown(["start to first finished step of the demo", "s, median (quartiles)", "n", "s until, medians"], rows)]
    )


def section_markdown(workload: str, section: Section) -> str:
    """Everything about one workload: where and when, table, bars."""
    jobs = section["jobs"]
    machine, versions = section["machine"], section["versions"]
    where = f"{machine['cpu']}, {machine['cpus']} cores, {machine['memory_gb']:.0f} GB, {machine['platform']}; {section['started']}; commit {section['commit']}"
    load = f"load average before {section['load_before']:.1f}, after {section['load_after']:.1f}"
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    head = f"### {TITLES[workload]}\n" + _wrapped(f"{where}; {load}. `{section['command']}`; {used}.")
    tables = {
        "A": functools.partial(_timed, rate=True),
        "B": functools.partial(_timed, rate=False),
        "C": _latent,
        "E": _growth,
        "F": _uneven,
        "G": _listed,
        "H": _listed,
    }
    table = tables.get(workload, _parts)(jobs)
    bars = "\n".join(_wrapped(f"- {describe(verdict)}", "  ") for verdict in section["bars"])
    return "\n\n".join([head, table, *([bars] if bars else [])])


def _wrapped(text: str, indent: str = "") -> str:
    """Prose in the line length of the documents. indent: of the lines after the first."""
    return textwrap.fill(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def replace_block(text: str, name: str, body: str) -> str:
    """Puts `body` between the markers of `name`; adds them at the end where there are none."""
    begin, end = f"<!-- bench {name}: written by python -m benchmarks -->", f"<!-- end bench {name} -->"
    block = f"{begin}\n{body}\n{end}"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text, count=1)
    return text.rstrip("\n") + f"\n\n{block}\n"


def write_docs(path: Path, sections: dict[str, Section]) -> None:
    """Rewrites the blocks of the given workloads and leaves everything else of the document alone."""
    text = path.read_text() if path.exists() else "# Performance\n"
    for workload, section in sections.items():
        text = replace_block(text, workload, section_markdown(workload, section))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
