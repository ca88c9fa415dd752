"""`lgrpo init`: the folder that it makes holds experiments that load and validate."""

import pytest

from lgrpo.__main__ import run
from lgrpo.config.overrides import load_experiment
from lgrpo.config.validate import validate
from lgrpo.errors import UserError


def test_the_new_folder_holds_valid_experiments(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mine"
    assert run(["init", str(folder)]) == 0
    assert "make" in capsys.readouterr().out
    modules = sorted(file for file in folder.glob("*.py") if "def get_config" in file.read_text())
    assert [file.stem for file in modules] == ["explicit_sft", "latent_grpo", "latent_sft", "with_first_token"]
    for file in modules:
        cfg = load_experiment(file)
        assert cfg.name == file.stem
        assert validate(cfg, device_count=1, kind="sft" if "sft" in file.stem else "train") == []
    targets = (folder / "Makefile").read_text()
    assert all(file.stem in targets for file in modules)


def test_it_overwrites_nothing(tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(UserError, match="holds files already"):
        run(["init", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
