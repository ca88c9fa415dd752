"""The demo's end: one page about all stages, and its path on the last line."""

import sys
from pathlib import Path

from experiments.demo import __main__ as demo

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from pages import Page, evaluation, write_run


def test_the_demo_ends_with_its_report(tmp_path, monkeypatch, capsys):
    """Stages are replaced by written runs; the report must hold all four, in their order, and come last."""

    def stage(cfg, folder, loop):
        write_run(folder, steps=3, name=cfg.name)
        one = evaluation(0.5)["noise_free"]
        lengths = {"chain_tokens": one["chain_tokens"], "answer_tokens": one["answer_tokens"]}
        return {"pass@1": one["pass@1"], "pass@1_sampled": one["pass@1"], **lengths, "invalid_frac": one["invalid_frac"], "seconds": 1.0}

    monkeypatch.setattr(demo, "finish_stage", stage)
    assert demo.run_demo(tmp_path, 0) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    page = tmp_path / "report.html"
    assert last == f"report: {page}"
    read = Page(page.read_text())
    assert read.problems == []
    rows = [row[0]["text"] for row in read.figures["accuracy"]["rows"]]
    assert rows == list(demo.STAGES)
