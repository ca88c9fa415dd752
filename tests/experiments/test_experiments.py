"""Every experiment module must load, resolve and validate; an ablation must differ from its base in its DIFF and in nothing else."""

import ast
import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from experiments.demo import latent_grpo
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff, diff, load_experiment
from lgrpo.config.validate import validate
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.keys import Stream, key_for
from lgrpo.latent.rollout import rollout
from lgrpo.models.presets import LLAMA_3_2_1B, QWEN2_5_0_5B, QWEN2_5_MATH_7B
from lgrpo.models.spec import abstract_params, spec_abstract
from lgrpo.train.check import find_kind
from lgrpo.train.setup import trained_specs
from lgrpo.train.steps.rl import group, make_train_batch, train_step
from lgrpo.train.steps.update import init_state
from lgrpo.types import PromptBatch

ROOT = pathlib.Path(__file__).parents[2] / "experiments"
# Modules of released models need files that are not here; tests/experiments/test_paper_settings.py checks them.
EMBEDDED = (p for p in ROOT.rglob("*.py") if "def get_config" in p.read_text() and load_experiment(p).data.tokenizer == "embedded")
MODULES = sorted(EMBEDDED)
ABLATIONS = sorted((ROOT / "ablations").glob("[!_]*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_module_is_valid(path):
    cfg = load_experiment(path)
    cfg = resolve(cfg, load_tokenizer(cfg.data))
    kind = "sft" if "sft" in str(path.relative_to(ROOT)) else "train"
    assert validate(cfg, device_count=1, kind=kind) == []
    assert cfg.name == path.stem


@pytest.mark.parametrize("path", sorted(p for p in ROOT.rglob("*.py") if "def get_config" in p.read_text()), ids=lambda p: p.stem)
def test_the_docstring_has_the_command(path):
    """Of this file, for the right loop, so that `check` knows it; and what came out where it was run, in the numbers of the document that it names."""
    kind, why = find_kind(path, ExperimentConfig())
    assert "docstring" in why and kind == ("sft" if "sft" in str(path.relative_to(ROOT)) else "train")
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert re.search(r"^(Not run|Result: |Measured )|Not run here", doc, re.M)
    for line in re.findall(r"^Measured .*docs/.*", doc, re.M):
        page = (ROOT.parent / re.search(r"docs/\w+\.md", line)[0]).read_text()
        assert set(re.findall(r"\d+\.\d+(?:e\d+)?|1e-4", line)) <= set(re.findall(r"\d+\.\d+(?:e\d+)?|1e-4", page))


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_ablation_is_its_diff(path):
    cfg = load_experiment(path)
    namespace: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    base = latent_grpo.get_config()
    changed, given = diff(base, cfg), namespace["DIFF"]
    assert apply_diff(base, given) == cfg
    # Nothing changes that is not named, a law as a whole or by its fields.
    assert [
        path for path in changed if not any(path == p or f"{path}.".startswith(f"{p}.") or p.startswith(f"{path}.") for p in given)
    ] == []
    # And something changes besides its name, or it would compare nothing; `exact` is the base.
    assert "name" in changed and (len(changed) > 1) == (cfg.name != "exact")


def abstract_step(cfg):
    """Shapes of one RL step: rollout, batch, update. Allocates nothing."""
    batch, length = cfg.train.prompts_per_step, cfg.data.max_prompt
    shape = jax.ShapeDtypeStruct
    prompts = PromptBatch(shape((batch, length), jnp.int32), shape((batch, length), jnp.bool_), shape((batch,), jnp.int32))
    params = abstract_params(cfg.model)
    key = jax.eval_shape(lambda: key_for(0, 0, Stream.ROLLOUT))
    sampled = jax.eval_shape(lambda p, x, k: rollout(p, x, k, cfg=cfg), params, prompts, key)
    grouped = jax.eval_shape(lambda r: group(r, cfg.rollout.group_size), sampled)
    rewards = shape((batch, cfg.rollout.group_size), jnp.float32)
    valid = shape((batch, cfg.rollout.group_size), jnp.bool_)
    learned = jax.eval_shape(lambda p, r, a, v: make_train_batch(p, r, a, v, cfg=cfg), prompts, grouped, rewards, valid)
    state = jax.eval_shape(lambda p: init_state(p, cfg, rl=True), spec_abstract(trained_specs(cfg, rl=True), cfg.model))
    return sampled, jax.eval_shape(lambda s, b: train_step(s, b, cfg=cfg), state, learned)


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_every_ablation_traces(path):
    cfg = load_experiment(path)
    cfg = resolve(cfg, load_tokenizer(cfg.data))
    sampled, (state, metrics) = abstract_step(cfg)
    assert sampled.ids.shape == (512, cfg.rollout.max_new_tokens, cfg.rollout.latent.k)
    assert metrics["policy/loss"].shape == ()
    assert jax.tree.map(lambda x: x.shape, state.params) == jax.tree.map(
        lambda x: x.shape, spec_abstract(trained_specs(cfg, rl=True), cfg.model)
    )


@pytest.mark.parametrize("model", [LLAMA_3_2_1B, QWEN2_5_0_5B, QWEN2_5_MATH_7B], ids=["llama-1b", "qwen-0.5b", "qwen-7b"])
def test_large_models_trace_without_memory(model):
    """One RL step of the real sizes under eval_shape: 4 prompts x 2, 64 + 32 positions, two micro-batches."""
    cfg = latent_grpo.get_config()
    cfg = dataclasses.replace(
        cfg,
        model=model,
        data=dataclasses.replace(cfg.data, think_end_id=522, eos_id=1, max_prompt=64),
        rollout=dataclasses.replace(cfg.rollout, group_size=2, max_new_tokens=32),
        train=dataclasses.replace(cfg.train, prompts_per_step=4, microbatch=2),
    )
    sampled, (state, _) = abstract_step(cfg)
    assert sampled.logps.shape == (8, 32)
    assert state.params["embed"].dtype == jnp.dtype(model.param_dtype)
