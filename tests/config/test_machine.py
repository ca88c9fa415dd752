"""model.dtype=auto: chosen by the backend, said in one line, kept by the run."""

import dataclasses

import pytest

from lgrpo.config import DataConfig, ExperimentConfig, ModelConfig, machine
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.runs import precision
from lgrpo.train.setup import prepare

AUTO = ExperimentConfig(model=ModelConfig(dtype="auto"))


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch):
    """Whatever this machine has."""
    monkeypatch.setattr(machine, "has_amx", lambda: False)


@pytest.mark.parametrize(
    ("backend", "amx", "dtype"),
    [("tpu", False, "bfloat16"), ("gpu", False, "bfloat16"), ("cpu", False, "float32"), ("cpu", True, "bfloat16")],
)
def test_by_backend(monkeypatch, backend, amx, dtype):
    monkeypatch.setattr(machine.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(machine, "has_amx", lambda: amx)
    cfg, said = machine.settle_dtype(AUTO)
    assert cfg == dataclasses.replace(AUTO, model=dataclasses.replace(AUTO.model, dtype=dtype))
    assert said.startswith(f"model.dtype=auto: {dtype}, ") and "\n" not in said
    assert resolve(AUTO, load_tokenizer(DataConfig())).model.dtype == dtype, "no program sees the word"
    chosen = ExperimentConfig(model=ModelConfig(dtype="bfloat16"))
    assert machine.settle_dtype(chosen) == (chosen, "")


def test_flags_of_the_processor(tmp_path, monkeypatch):
    monkeypatch.undo()
    for text, found in (("flags : avx512f amx_bf16 amx_tile", True), ("flags : avx512f avx512_bf16 amx_tile", False)):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
        assert machine.has_amx() is found
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    assert machine.has_amx() is False


def test_a_run_keeps_what_it_began_with(tmp_path, monkeypatch):
    """Begun on an accelerator, and this machine is a CPU."""
    monkeypatch.setattr(precision, "saved_config", lambda _: ExperimentConfig(model=ModelConfig(dtype="bfloat16")))
    assert precision.settle_for_run(AUTO, None)[0].model.dtype == "float32"
    assert precision.settle_for_run(AUTO, tmp_path)[0].model.dtype == "float32", "nothing has begun there"
    (tmp_path / "checkpoints" / "unfinished").mkdir(parents=True)
    assert precision.settle_for_run(AUTO, tmp_path)[0].model.dtype == "float32"
    (tmp_path / "checkpoints" / "3").mkdir()
    cfg, said = precision.settle_for_run(AUTO, tmp_path)
    assert cfg.model.dtype == "bfloat16" and said == f"model.dtype=auto: bfloat16, with which {tmp_path} began"


def test_the_start_of_a_run_says_it_once(tmp_path, capsys):
    cfg, _ = prepare(AUTO, tmp_path, kind="train")
    assert cfg.model.dtype == "float32"
    said = [line for line in capsys.readouterr().err.splitlines() if "model.dtype" in line]
    assert len(said) == 1 and said[0].startswith("model.dtype=auto: float32, on a CPU")
