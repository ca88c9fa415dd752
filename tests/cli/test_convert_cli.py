"""import-hf, export-hf and overlap from the command line, and that weights of another model are refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import pytest

from lgrpo import __main__ as cli
from lgrpo.config import ModelConfig, RopeScaling
from lgrpo.config.same import check_same_model
from lgrpo.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def main(monkeypatch, capsys, *argv):
    """(exit code, stdout, stderr) of a command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["lgrpo", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr()
    return stop.value.code or 0, out.out, out.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["import-hf"], "the following arguments are required: SOURCE, --workdir"),
        (["import-hf", "nowhere", "--workdir", "w"], "nowhere: no such folder, and no repo id either"),
        (["import-hf", "x", "--workdir", "w", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["export-hf", "nowhere", "out-of-nowhere"], "nowhere: no checkpoints there"),
        (["export-hf", "nowhere"], "required: OUT"),
        (["overlap"], "no experiment given"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path, argv, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = main(monkeypatch, capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and says in err


def test_options_reach_the_conversion(monkeypatch, capsys):
    from lgrpo.config import ExperimentConfig, MeshConfig
    from lgrpo.runs import convert

    seen = {}
    monkeypatch.setattr(convert, "import_hf", lambda *a, **k: seen.update(k, args=a) or ExperimentConfig())
    monkeypatch.setattr(convert, "export_hf", lambda *a, **k: seen.update(k, args=a) or ["model.safetensors"])
    options = [
        "--revision",
        "v1",
        "--dtype",
        "float32",
        "--extra-tokens",
        "drop",
        "--add-tokens",
        "<a>",
        "<b>",
        "--fsdp",
        "2",
        "--tensor",
        "4",
    ]
    code, out, _ = main(monkeypatch, capsys, "import-hf", "a/b", "--workdir", "w", *options)
    assert code == 0 and "start from it with: --train.init-from w" in out and seen["add"] == ["<a>", "<b>"]
    assert seen["args"] == ("a/b", pathlib.Path("w")) and seen["mesh"] == MeshConfig(data=1, fsdp=2, tensor=4)
    assert (seen["revision"], seen["dtype"], seen["extra_tokens"]) == ("v1", "float32", "drop")
    code, out, _ = main(monkeypatch, capsys, "export-hf", "w", "out", "--best", "--shard-bytes", "5", "--tokenizer", "t")
    assert (code, out) == (0, "out: model.safetensors\n")
    assert (seen["best"], seen["dtype"], seen["shard_bytes"], seen["tokenizer"]) == (True, "keep", 5, "t")


def test_overlap_prints_and_writes(monkeypatch, capsys, tmp_path):
    experiment = ROOT / "experiments" / "gsm8k_llama1b_smoke.py"
    code, out, _ = main(monkeypatch, capsys, "overlap", experiment, "--against", "test", "train", "--out", tmp_path / "o.json")
    report = json.loads((tmp_path / "o.json").read_text())
    assert code == 0 and "train (train)" in out
    assert (report["eval"]["test"]["shared"], report["eval"]["train"]["shared"]) == (0, 256)


def test_weights_of_another_model_are_refused():
    saved = ModelConfig(rope_theta=500000.0, rope_scaling=RopeScaling())
    check_same_model(saved, dataclasses.replace(saved, dtype="bfloat16", param_dtype="bfloat16", remat=True), "w")
    with pytest.raises(UserError, match=r"w holds another model.*model\.rope_theta: 500000\.0 there, 10000\.0 here") as error:
        check_same_model(saved, ModelConfig(rms_eps=1e-6), "w")
    assert "model.rms_eps" in str(error.value) and "model.rope_scaling" in str(error.value)
