"""What tests of rewards share."""

import pytest

from lgrpo.config import DataConfig, ExperimentConfig
from lgrpo.data import prompts


@pytest.fixture(scope="module")
def tokenizer():
    return prompts.load_tokenizer(DataConfig())


@pytest.fixture(scope="module")
def cfg(tokenizer):
    return prompts.resolve(ExperimentConfig(), tokenizer)
