"""The demo's end: one page about all stages, and its path on the last line."""

import dataclasses
import sys
from pathlib import Path

import pytest

from experiments.demo import __main__ as demo
from lgrpo.config.overrides import to_json
from lgrpo.errors import UserError

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


def test_a_finished_stage_outlives_new_settings_but_not_changed_ones(tmp_path):
    """What a later version added is what the stage had by default; a setting with another value is another stage."""
    cfg = demo.stage_config("explicit_sft", tmp_path, 0)
    saved = to_json(cfg)
    del saved["evaluation"]["arms"], saved["evaluation"]["curve"]
    demo.write_json(tmp_path / "stage.json", {"config": saved, "result": {"pass@1": 1}})
    assert demo.finish_stage(cfg, tmp_path, pytest.fail) == {"pass@1": 1}
    other = dataclasses.replace(cfg, sft=dataclasses.replace(cfg.sft, max_chain=cfg.sft.max_chain + 1))
    with pytest.raises(UserError, match=r"other settings \(sft\.max_chain\)"):
        demo.finish_stage(other, tmp_path, pytest.fail)
