"""A tiny random model on a few generated problems."""

from __future__ import annotations

import json

import jax
import pytest
from support import INIT

from lgrpo.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LatentConfig,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    RolloutConfig,
)
from lgrpo.data import prompts, word_problems
from lgrpo.sharding import make_mesh

PROBLEMS = 11  # two batches of eight: the second one is filled up


@pytest.fixture(scope="session")
def data_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems")
    records = [word_problems.generate("mini", "test", i) for i in range(PROBLEMS)]
    text = "".join(json.dumps({name: record[name] for name in ("problem", "answer")}) + "\n" for record in records)
    for name in ("test", "svamp_test", "multiarith_test"):
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    return prompts.load_tokenizer(DataConfig())


@pytest.fixture(scope="session")
def cfg(data_path, tokenizer):
    """Resolved. At least two latent steps, at most four, so that there is something to intervene on."""
    cfg = ExperimentConfig(
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        data=DataConfig(source="jsonl", path=str(data_path), max_prompt=32),
        rollout=RolloutConfig(max_new_tokens=8, latent=LatentConfig(k=4, min_latent=2, max_latent=4)),
        evaluation=EvaluationConfig(problems=0, samples=4, sample_chunk=2, batch=8, bootstrap=200),
        logging=LoggingConfig(tensorboard=False, progress=False),
        mesh=MeshConfig(data=8),
    )
    return prompts.resolve(cfg, tokenizer)


@pytest.fixture(scope="session")
def params(cfg):
    return INIT(cfg.model, jax.random.key(0))


@pytest.fixture(scope="session")
def mesh(cfg):
    return make_mesh(cfg.mesh)
