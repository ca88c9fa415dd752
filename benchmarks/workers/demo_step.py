"""The demo's RL step by phase, with random weights, which generate to the limit: the longest step there is. args: config (latent, explicit), repeats."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from benchmarks.timing import alternate
from experiments.demo import explicit_grpo, latent_grpo
from lgrpo.config import ExperimentConfig
from lgrpo.data.pipeline import prompt_stream
from lgrpo.keys import Stream, key_for
from lgrpo.models.spec import init_params
from lgrpo.rewards.score import score
from lgrpo.train.setup import prepare
from lgrpo.train.steps.rl import group, make_train_batch, rollout_step, train_step
from lgrpo.train.steps.update import init_state

CONFIGS = {"latent": latent_grpo.get_config, "explicit": explicit_grpo.get_config}


def demo_config(name: str) -> ExperimentConfig:
    """The demo's experiment, from random weights."""
    cfg = CONFIGS[name]()
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, init_from=""))


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the learner (prompts shared or tiled, less or no diagnostics), of the rollout, of grading on the host, of advantages and masks."""
    cfg, tokenizer = prepare(demo_config(args["config"]), kind="train")
    prompts, answers = next(prompt_stream(cfg, tokenizer, "train", batch=cfg.train.prompts_per_step))
    params = init_params(cfg.model, key_for(0, 0, Stream.INIT))
    key, size = key_for(0, 0, Stream.ROLLOUT), cfg.rollout.group_size
    start = time.perf_counter()
    sampled = jax.block_until_ready(rollout_step(params, prompts, key, cfg=cfg))
    compiled_s = time.perf_counter() - start
    rewards = np.random.default_rng(0).integers(0, 2, (len(answers), size)).astype(np.float32)

    def other(**changes: Any) -> ExperimentConfig:
        return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, **changes))

    def batch() -> Any:
        return make_train_batch(prompts, group(sampled, size), rewards, np.ones_like(rewards, bool), cfg=cfg)

    train_batch = batch()

    def learn(cfg: ExperimentConfig) -> Any:
        state = init_state(jax.tree.map(np.array, params), cfg, rl=True)
        return jax.block_until_ready(train_step(state, train_batch, cfg=cfg))

    variants = {
        "learner, prompt once per group": lambda: learn(cfg),
        "learner, diagnostics cheap": lambda: learn(other(diagnostics="cheap")),
        "learner, diagnostics off": lambda: learn(other(diagnostics="off")),
        "learner, prompt tiled": lambda: learn(other(share_prefix=False)),
        "rollout": lambda: jax.block_until_ready(rollout_step(params, prompts, key, cfg=cfg)),
        "grading": lambda: score(jax.device_get(sampled), answers, tokenizer, cfg).rewards,
        "advantages and masks": lambda: jax.block_until_ready(batch()),
    }
    shape = f"{len(answers)} prompts x {size}, P={cfg.data.max_prompt}, T={cfg.rollout.max_new_tokens}"
    parts = alternate(variants, args["repeats"])
    parts["rollout"]["first_s"] = compiled_s
    return {"parts": parts, "shape": shape}
