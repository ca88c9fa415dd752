"""The model card of an export: what it says must be what was run and measured, of these weights and no others."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import pytest
from support import INIT

from lgrpo.config import AlgoConfig, CheckpointConfig, DataConfig, ExperimentConfig, LatentConfig, ModelConfig, RolloutConfig, TrainConfig
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.evaluation.shards import params_digest
from lgrpo.latent.laws.exact import Exact
from lgrpo.runs.checkpoint import Checkpoints
from lgrpo.runs.convert import export_hf
from lgrpo.types import TrainState

NUMBER = {"value": 0.5, "low": 0.25, "high": 0.75}
MODEL = ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16)


def saved(workdir, cfg, extra, step):
    """A workdir with one checkpoint; returns the digest of its weights."""
    tokenizer = load_tokenizer(cfg.data)
    cfg, zero = resolve(cfg, tokenizer), jnp.zeros((), jnp.int32)
    params = INIT(cfg.model, jax.random.key(step))
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    state = TrainState(zero, params, None, zero, zero, None)
    checkpoints.save(step, state=state, data={}, buffer=None, cfg=cfg, extra={"seconds": 0.0} | extra, metric=None)
    checkpoints.close()
    return params_digest(params)


def evaluated(folder, digest, split="test"):
    about = {"weights": digest, "noise_scale": 1.0, "answers": "T 1", "samples": 4, "data": "word_problems/demo", "split": split}
    passes = {"pass@1": NUMBER, "chain_tokens": NUMBER | {"value": 3.25}, "answer_tokens": NUMBER, "invalid_frac": NUMBER}
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(json.dumps({"about": about, "problems": 77, "noise_free": passes, "sampled": passes}))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """An import, supervised training from it, RL from that: (folder of the three, digest of the last)."""
    folder = tmp_path_factory.mktemp("chain")
    cfg = ExperimentConfig(
        name="sft", model=MODEL, data=DataConfig(difficulty="demo", data_dir="/private"), train=TrainConfig(num_steps=30)
    )
    saved(folder / "imported", cfg, {"source": "someone/some-model"}, 0)
    cfg = dataclasses.replace(cfg, train=TrainConfig(num_steps=30, init_from=str(folder / "imported")))
    saved(folder / "sft", cfg, {}, 30)
    train = TrainConfig(num_steps=9, prompts_per_step=16, init_from=str(folder / "sft"))
    cfg = dataclasses.replace(cfg, name="rl", rollout=RolloutConfig(latent=LatentConfig(k=3, law=Exact())), algo=AlgoConfig(), train=train)
    return folder, saved(folder / "rl", cfg, {}, 8)


def card(workdir, out):
    export_hf(workdir, out)
    return (out / "README.md").read_text()


def test_a_card_says_where_the_weights_come_from_and_what_was_measured_of_them(chain, tmp_path):
    folder, digest = chain
    workdir = shutil.copytree(folder / "rl", tmp_path / "rl")
    evaluated(workdir / "eval", digest)
    evaluated(workdir / "suite" / "other", digest, "hard")
    evaluated(workdir / "start", "0" * 16, "of other weights")
    text = card(workdir, tmp_path / "out")
    assert "Base: `someone/some-model`. Data of the last stage: word_problems/demo, split `train`" in text
    assert "Stages: sft (30 steps), then rl (checkpoint of step 8 of 9)." in text
    assert "train.prompts_per_step = 16\n" in text and "rollout.latent.k = 3\n" in text
    for private in ("/private", str(folder)):
        assert private not in text
    measured = "0.500 [0.250, 0.750] | 3.250 [0.250, 0.750]"
    assert f"| word_problems/demo, test | 77 | noise-free | {measured}" in text
    assert f"| word_problems/demo, hard | 77 | sampled: latent noise 1, T 1, 4 a problem | {measured}" in text
    assert "of other weights" not in text
    assert "Take the 3 largest logits" in text and "That of the base model holds" in text
    latent = json.loads((tmp_path / "out" / "latent_config.json").read_text())
    assert latent["prompt"] == "{problem}<think>" and f"Prompt: `{latent['prompt']}`" in text
    assert (latent["min_latent"], latent["max_latent"]) == (0, 0)


def test_a_card_without_evaluations_or_base_says_so(chain, tmp_path):
    cfg = ExperimentConfig(name="scratch", model=MODEL, rollout=RolloutConfig(mode="explicit", latent=LatentConfig(k=1)))
    saved(tmp_path / "w", cfg, {}, 3)
    text = card(tmp_path / "w", tmp_path / "out")
    assert "Base: none, random weights." in text and "No base model" in text
    assert "No evaluation of these weights lay in the workdir" in text
    assert "thinks in ordinary tokens" in text and "largest logits" not in text
    gone = dataclasses.replace(cfg, train=TrainConfig(init_from=str(tmp_path / "gone")))
    saved(tmp_path / "w2", gone, {}, 3)
    assert "Base: not known" in card(tmp_path / "w2", tmp_path / "out2")
    assert "lgrpo trained nothing" in card(chain[0] / "imported", tmp_path / "out3")
