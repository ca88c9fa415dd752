"""Nothing that comes from disk or from a model is run or unpickled, paths stay in their folder, graders have limits."""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest

from lgrpo.config import DataConfig, ExperimentConfig, SftConfig
from lgrpo.config.overrides import from_json, to_json
from lgrpo.data.chat import load_chat_template
from lgrpo.data.labels import load_labels
from lgrpo.data.prompts import load_tokenizer
from lgrpo.data.sources import load_records
from lgrpo.errors import UserError
from lgrpo.models.hf_io import INDEX, TensorFiles
from lgrpo.rewards import workers
from lgrpo.rewards.grade import grade_all
from lgrpo.rewards.workers import shared_pool

ROOT = Path(__file__).parents[2]
MODULES = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "torch",
    "transformers",
    "yaml",
    "runpy",
    "code",
    "pty",
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
ATTRIBUTES = {"exec_module", "system", "popen", "load_module", "trust_remote_code", "allow_pickle", "literal_eval", "read_pickle"}
# The experiment that a user names on the command line is Python; that is what it is for. What follows `ablate --set x=` may be a Python literal.
ALLOWED = {("objects.py", "exec_module"), ("grid.py", "literal_eval")}


def dangers(source, name="x.py"):
    """(line, what) of everything in a module that could run or unpickle data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in CALLS:
                yield node.lineno, called.id
            if isinstance(called, ast.Attribute) and called.attr in ATTRIBUTES and (name, called.attr) not in ALLOWED:
                yield node.lineno, called.attr
            yield from ((node.lineno, k.arg) for k in node.keywords if k.arg in ATTRIBUTES and not is_false(k.value))
            yield from ((node.lineno, "shell=True") for k in node.keywords if k.arg == "shell" and not is_false(k.value))


def is_false(node):
    return isinstance(node, ast.Constant) and node.value is False


def test_no_module_runs_or_unpickles_data():
    files = sorted((ROOT / "lgrpo").rglob("*.py"))
    assert len(files) > 80
    assert [(str(f.relative_to(ROOT)), *found) for f in files for found in dangers(f.read_text(), f.name)] == []


def test_a_config_from_disk_runs_no_code(tmp_path):
    """It may name a law's file; that is run when the user names it, not because a checkpoint does."""
    file = tmp_path / "theirs.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    data = to_json(ExperimentConfig())
    for name in (f"{file}:Mine", "antigravity:Mine"):
        data["rollout"]["latent"]["law"] = {"class": name, "width": 2.0}
        cfg = from_json(data)
        assert to_json(cfg) == data and from_json(data) == cfg and not (tmp_path / "ran").exists()
        with pytest.raises(UserError, match=r"is not loaded; name it with --rollout\.latent\.law"):
            cfg.rollout.latent.law.draw(cfg.rollout.latent, None, None, None, 0)
    for name in ("lgrpo.latent.laws.exact:Nothing", "lgrpo.nothing:Exact", "lgrpo.types:Finish", 3):
        data["rollout"]["latent"]["law"] = {"class": name}
        with pytest.raises(UserError, match="law"):
            from_json(data)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "import torch.serialization as s",
        "eval('1')",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "spec.loader.exec_module(m)",
    ],
)
def test_the_scan_finds(source):
    assert list(dangers(source))
    assert not list(dangers("re.compile(x); np.load(f); np.load(f, allow_pickle=False); subprocess.run([x])"))


def test_an_answer_is_never_run(tmp_path):
    """Whatever grader: an answer that would create a file if anything evaluated it."""
    witness = tmp_path / "run"
    code = f"__import__('os').system('touch {witness}')"
    answers = [code, f"\\boxed{{{code}}}", f"${code}$", f"\\frac{{{code}}}{{1}}", "{{ 7 * 7 }}", f"A. {code}"]
    for grader, gold in (("math", "x+1"), ("numeric", "2"), ("choice", "A"), ("official", "2")):
        grade_all(answers, [gold] * len(answers), DataConfig(grader=grader, grader_workers=1))
    shared_pool(1, DataConfig().grader_seconds).close()
    assert not witness.exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/limits"), reason="reads the limits from /proc")
def test_grader_workers_have_limits():
    pool = workers.WorkerPool(1, 3.0)
    assert pool.judge([("x+1", "1+x")]) == ["correct"]
    lines = Path(f"/proc/{pool._workers[0].process.pid}/limits").read_text().splitlines()
    pool.close()
    soft = {line[:25].strip(): line[25:].split()[0] for line in lines[1:]}
    assert int(soft["Max cpu time"]) < 60
    assert int(soft["Max address space"]) < 8 * 2**30
    assert soft["Max core file size"] == "0"


@pytest.mark.parametrize("split", ["../secret", "/etc/passwd", "a/../../secret"])
def test_splits_stay_in_their_folder(tmp_path, split):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.jsonl").write_text('{"problem": "p", "answer": "1"}\n')
    with pytest.raises(UserError, match="leads out of"):
        load_records(DataConfig(source="jsonl", path=str(tmp_path / "data")), split)
    cfg = ExperimentConfig(sft=SftConfig(label_path=str(tmp_path / "data")))
    with pytest.raises(UserError, match="leads out of"):
        load_labels(cfg, load_tokenizer(cfg.data), split, fingerprint="", uid=np.zeros(1, np.int32), latents=1)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_weight_files_stay_in_their_folder(tmp_path, file):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": file}}))
    with pytest.raises(UserError, match="no plain file name"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize(
    "template", ["{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"]
)
def test_chat_templates_read_no_files_and_reach_no_objects(tmp_path, template):
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError):
        load_chat_template(tmp_path).render("p")


def test_labels_with_pickled_objects_are_refused(tmp_path):
    """What load_labels relies on: NumPy does not unpickle unless it is told to."""
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    with np.load(tmp_path / "x.npz") as arrays, pytest.raises(ValueError, match="allow_pickle=False"):
        arrays["x"]
