"""A researcher's first day, end to end: import, data, check, sft, train, eval, report, trace, ask, export, with a tiny model in the real format and
JSON lines. Every number on the report's page is one of the JSON files, or the median or share that its words say."""

import contextlib
import io
import json
import math
import os
from pathlib import Path
from statistics import median

import jax
import numpy as np
import pytest
from pages import Page
from support import INIT

from lgrpo.__main__ import run
from lgrpo.config import ExperimentConfig, ModelConfig
from lgrpo.config.imported import imported
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.data.word_problems import generate
from lgrpo.errors import UserError
from lgrpo.evaluation.shards import params_digest, read_rows
from lgrpo.models.spec import abstract_params
from lgrpo.report import evaluations
from lgrpo.runs.checkpoint import Checkpoints, load_params, saved_config
from lgrpo.runs.metrics import read_metrics
from lgrpo.train.steps.update import init_state

COMMON = """
from lgrpo.config import *
from lgrpo.config.imported import imported, imported_data
from lgrpo.config.overrides import apply_diff

BASE = ExperimentConfig(
    model=imported("runs/model"),
    data=imported_data("runs/model", source="jsonl", path="problems", template="plain", max_prompt=64),
    rollout=RolloutConfig(group_size=2, max_new_tokens=8, latent=LatentConfig(k=4, max_latent=3)),
    sft=SftConfig(stage="latent", compression=4, max_chain=32, max_answer=4, batch_size=8),
    train=TrainConfig(num_steps=2, prompts_per_step=8, init_from="runs/model"),
    evaluation=EvaluationConfig(every=2, problems=8, samples=2, batch=8, bootstrap=50),
    logging=LoggingConfig(tensorboard=False, progress=False),
)
"""
SFT = '''"""Run: python -m lgrpo sft sft.py --workdir runs/sft"""
import common

def get_config():
    return common.apply_diff(common.BASE, {"name": "sft"})
'''
RL = SFT.replace("sft", "rl").replace("lgrpo rl", "lgrpo train").replace('"rl"', '"rl", "train.init_from": "runs/sft"')


def problems(folder):
    folder.mkdir()
    for split, name, count in (("train", "train", 24), ("test", "test", 12), ("hard", "valid", 6)):
        rows = [generate("mini", name, i) for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({k: r[k] for k in ("problem", "cot", "answer")}) + "\n" for r in rows))


def downloaded(folder):
    """A folder as a model hub gives it: config.json, safetensors, tokenizer."""
    model = ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32)
    cfg = ExperimentConfig(model=model)
    cfg = resolve(cfg, load_tokenizer(cfg.data))
    saver = Checkpoints(folder / "made", cfg.checkpoint)
    state = init_state(INIT(cfg.model, jax.random.key(0)), cfg, rl=True)
    saver.save(0, state=state, data={}, buffer=None, cfg=cfg, extra={"seconds": 0.0}, metric=None)
    saver.close()
    assert run(["export-hf", str(folder / "made"), str(folder / "downloaded")]) == 0


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """(folder, what each command said, by its first words)."""
    folder, said = tmp_path_factory.mktemp("day"), {}
    problems(folder / "problems")
    for name, text in (("common", COMMON), ("sft", SFT), ("rl", RL)):
        (folder / f"{name}.py").write_text(text)
    before = Path.cwd()
    os.chdir(folder)
    try:
        downloaded(folder)
        for line in (
            "import-hf downloaded --workdir runs/model",
            "data problems/train.jsonl --experiment sft.py",
            "check sft.py",
            "sft sft.py --workdir runs/sft",
            "check rl.py",
            "train rl.py --workdir runs/rl",
            "eval sft.py --workdir runs/sft",
            "eval rl.py --workdir runs/rl",
            "eval rl.py --workdir runs/rl --data.eval-split hard --out hard --evaluation.problems 0",
            "report runs --out report.html",
            "trace rl.py --workdir runs/rl --other runs/sft --problems 1 --out trace.html",
            "export-hf runs/rl exported",
            "import-hf exported --workdir again",
        ):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                code = run(line.split())
            assert code == 0, (line, out.getvalue())
            said[" ".join(line.split()[:2])] = out.getvalue()
        yield folder, said
    finally:
        os.chdir(before)


def test_every_command_says_what_it_did(day):
    folder, said = day
    assert "model=imported('runs/model'), data=imported_data('runs/model')" in said["import-hf downloaded"]
    assert "24 records" in said["data problems/train.jsonl"]
    assert (
        "ok for `sft`" in said["check sft.py"]
        and "its target: " in said["check sft.py"]
        and "step 0 of train.init_from" in said["check sft.py"]
    )
    assert "ok for `train`" in said["check rl.py"] and "step 2 of train.init_from=runs/sft" in said["check rl.py"]
    assert "checkpoint of step 2" in said["eval rl.py"] and "split hard: 6 of 6 problems" in said["eval rl.py"]
    assert Page((folder / "trace.html").read_text()).problems == [] and "answer: " in said["trace rl.py"]
    rows = read_rows(folder / "runs/rl/eval/eval.jsonl")
    assert len(rows) == 8 * 3 and all(row["raw"] for row in rows)


def test_what_was_exported_is_what_was_evaluated(day):
    folder, _ = day
    cfg = saved_config(folder / "again")
    digest = params_digest(load_params(folder / "again", abstract_params(cfg.model)))
    assert digest == json.loads((folder / "runs/rl/eval/eval.json").read_text())["about"]["weights"]


def test_a_downloaded_folder_is_no_start(day):
    with pytest.raises(UserError, match=r"a Hugging Face model; import it: python -m lgrpo import-hf downloaded"):
        run(["check", "rl.py", "--train.init-from", "downloaded"])
    for folder, says in (("downloaded", "not the settings of a workdir"), ("nowhere", "cannot be read")):
        with pytest.raises(UserError, match=f"{says}.*import-hf"):
            imported(folder)


def numbers(tree):
    """Every number in a JSON tree."""
    if isinstance(tree, dict):
        return {x for value in tree.values() for x in numbers(value)}
    if isinstance(tree, list):
        return {x for value in tree for x in numbers(value)}
    return {float(tree)} if isinstance(tree, int | float) and not isinstance(tree, bool) else set()


def test_the_page_agrees_with_the_files(day):
    folder, _ = day
    page = Page((folder / "report.html").read_text())
    assert page.problems == []
    logged = {name: {row["step"]: row for row in read_metrics(folder / "runs" / name)} for name in ("sft", "rl")}
    found = {(run, name): json.loads((folder / "runs" / run / name / "eval.json").read_text()) for run, name in EVALUATED}
    check_evaluations(page, found)
    curves = [f for key, f in page.figures.items() if key.split("-")[0] in logged and f["header"][0][1]["text"] == "step"]
    assert len(curves) > 10
    for figure in curves:
        metric = figure["header"][0][2]["text"]
        for label, step, value, _ in figure["rows"]:
            assert float(value["values"][0]) == logged[label["text"]][int(step["values"][0])][metric], metric
    known = numbers(list(found.values())) | numbers([list(rows.values()) for rows in logged.values()])
    known |= {float(n) for n in range(3)} | timings(logged)
    shown = [float(attrs["value"]) for tag, attrs in page.tags if tag == "data"]
    strange = [x for x in shown if not any(math.isclose(x, y, rel_tol=1e-12, abs_tol=1e-15) for y in known)]
    assert len(shown) > 100 and strange == []


EVALUATED = (("sft", "eval"), ("rl", "eval"), ("rl", "hard"))


def check_evaluations(page, found):
    """Each row of each evaluation's table, number by number; the two splits are two tables."""
    tables = [t for t in page.tables if [cell["text"] for cell in t[0]] == list(evaluations.COLUMNS)]
    rows = [[(row[0]["text"], row[2]["text"].split(", ")[-1]) for row in t[1:]] for t in tables]
    assert [sorted(r) for r in rows] == [[("rl", "test"), ("sft", "test")], [("rl", "hard")]]
    for row in (row for t in tables for row in t[1:]):
        values = [[float(v) for v in cell["values"]] for cell in row]
        e = found[row[0]["text"], "hard" if row[2]["text"].endswith("hard") else "eval"]
        about, clean, noisy = e["about"], e["noise_free"], e["sampled"]
        assert values[3:5] == [[e["problems"]], [about["noise_scale"]]] and values[6:8] == [[about["samples"]], [about["step"]]]
        cells = [clean["pass@1"], noisy["pass@1"], noisy["pass@2"], clean["chain_tokens"], clean["answer_tokens"], noisy["invalid_frac"]]
        assert values[8:] == [[c["value"], c["low"], c["high"]] for c in cells]


def timings(logged):
    """Medians of the seconds of steps but the first, and of whole runs."""
    out = set()
    for rows in logged.values():
        some = list(rows.values())[1:]
        parts = {p: median(row.get(f"time/{p}_s") or 0.0 for row in some) for p in ("rollout", "train", "grade", "data")}
        step = median(row["time/step_s"] for row in some)
        out |= {*parts.values(), step, max(0.0, step - sum(parts.values()))}
        out.add(float(np.sum([row.get("time/compile_s") or 0.0 for row in rows.values()])))
    return out
