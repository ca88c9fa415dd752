"""A plugin of pytest: where the suite's processor time goes.

Run: make test PYTEST="-p tests.costs", or python -m pytest -p costs TESTS. At the end: CPU seconds by folder, of tests and of the processes that they
start, and what of the former JAX spent on tracing, lowering and compiling; then the dearest files.
"""

from __future__ import annotations

import collections
import resource
import time

import pytest

_STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}
_PARTS = ("CPU", "children", *_STAGES.values())
_KEY = "costs"
_stages: collections.Counter[str] = collections.Counter()
_by_file: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)


def _listen(event: str, seconds: float, **_: object) -> None:
    # Seconds of the wall: a trace inside a trace counts twice, and the compiler has several threads.
    if event in _STAGES:
        _stages[_STAGES[event]] += seconds


def _now() -> dict[str, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # of those that have ended
    return {
        "CPU": time.process_time(),
        "children": children.ru_utime + children.ru_stime,
        **{part: _stages[part] for part in _STAGES.values()},
    }


def pytest_configure(config):
    import jax  # after conftest has set its flags

    jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Fixtures included."""
    item.stash[_began] = _now()
    return (yield)


_began: pytest.StashKey[dict[str, float]] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    now, before = _now(), item.stash[_began]
    item.stash[_began] = now
    report.user_properties.append((_KEY, {part: now[part] - before[part] for part in _PARTS}))  # reaches the controller of pytest-xdist
    return report


def pytest_runtest_logreport(report):
    for key, spent in report.user_properties:
        if key == _KEY:
            _by_file[report.location[0]].update(spent)


def _folder(file: str) -> str:
    parts = file.split("/")
    return parts[1] if len(parts) > 2 else "."


def _table(rows: dict[str, collections.Counter[str]], most: int) -> list[str]:
    order = sorted(rows, key=lambda name: -rows[name]["CPU"] - rows[name]["children"])[:most]
    return ["| " + " | ".join([name, *(f"{rows[name][part]:.0f}" for part in _PARTS)]) + " |" for name in order]


def pytest_terminal_summary(terminalreporter):
    folders: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for file, spent in _by_file.items():
        for name in (_folder(file), "all"):
            folders[name].update(spent)
    head = ["| seconds | " + " | ".join(_PARTS) + " |", "| --- |" + " ---: |" * len(_PARTS)]
    terminalreporter.write_line("\n".join(["", *head, *_table(folders, 99), "", *head, *_table(_by_file, 25)]))
