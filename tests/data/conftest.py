"""One prepared copy of the smallest embedded task for all data tests."""

from __future__ import annotations

import dataclasses

import pytest

from lgrpo.config import DataConfig, ExperimentConfig, SftConfig
from lgrpo.data import prompts


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def tokenizer():
    return prompts.load_tokenizer(DataConfig())


@pytest.fixture(scope="session")
def cfg(tfds_dir, tokenizer):
    """Resolved config of the smallest task."""
    data = DataConfig(difficulty="mini", data_dir=tfds_dir, max_prompt=32)
    return prompts.resolve(ExperimentConfig(data=data, sft=SftConfig(max_chain=16, max_answer=4)), tokenizer)


@pytest.fixture
def jsonl_cfg(cfg, tmp_path):
    """Factory: a config that reads the given lines as train.jsonl."""

    def make(*lines: str, **data_fields):
        (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, source="jsonl", path=str(tmp_path), **data_fields))

    return make
