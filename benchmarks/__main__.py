"""The demo's RL step: learner with shared and tiled prompts, rollout, grading, and the share of host work.

Run: make bench    (python -m benchmarks --out runs/bench)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform

import jax
import numpy as np

from benchmarks.timing import alternate
from experiments.demo import explicit_grpo, latent_grpo
from lgrpo.checkpoint import versions
from lgrpo.config import ExperimentConfig
from lgrpo.data.pipeline import prompt_stream
from lgrpo.keys import Stream, key_for
from lgrpo.metrics import summary_table
from lgrpo.models.spec import init_params
from lgrpo.rewards.score import score
from lgrpo.train.setup import prepare
from lgrpo.train.step import group, init_state, make_train_batch, rollout_step, train_step


def workload(cfg: ExperimentConfig, repeats: int) -> dict[str, dict[str, object]]:
    """Seconds of each part of one RL step with random weights, which generate to the limit: the longest step there is."""
    cfg, tokenizer = prepare(cfg, kind="train")
    prompts, answers = next(prompt_stream(cfg, tokenizer, "train", batch=cfg.train.prompts_per_step))
    params = init_params(cfg.model, key_for(0, 0, Stream.INIT))
    key = key_for(0, 0, Stream.ROLLOUT)
    sampled = rollout_step(params, prompts, key, cfg=cfg)
    size = cfg.rollout.group_size
    rewards = np.random.default_rng(0).integers(0, 2, (len(answers), size)).astype(np.float32)
    batch = make_train_batch(prompts, group(sampled, size), rewards, np.ones_like(rewards, bool), cfg=cfg)
    tiled = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, share_prefix=False))

    def learn(cfg: ExperimentConfig) -> object:
        return train_step(init_state(jax.tree.map(np.array, params), cfg, rl=True), batch, cfg=cfg)

    return alternate(
        {
            "learner, prompt once per group": lambda: learn(cfg),
            "learner, prompt tiled": lambda: learn(tiled),
            "rollout": lambda: rollout_step(params, prompts, key, cfg=cfg),
            "grading": lambda: score(jax.device_get(sampled), answers, tokenizer, cfg).rewards,
        },
        repeats,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/bench"))
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "backend": jax.default_backend()}
    results: dict[str, object] = {"machine": machine, "versions": versions()}
    for name, cfg in (("latent", latent_grpo.get_config()), ("explicit", explicit_grpo.get_config())):
        cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, init_from=""))
        measured = workload(cfg, args.repeats)
        once, tiled = measured["learner, prompt once per group"]["median_s"], measured["learner, prompt tiled"]["median_s"]
        results[name] = measured | {"tiled / shared": tiled / once}
        columns = ["part", "median ms", "quartiles ms"]
        rows = [
            [part, f"{m['median_s'] * 1e3:.1f}", " - ".join(f"{q * 1e3:.1f}" for q in m["quartiles_s"])]  # type: ignore[index]
            for part, m in measured.items()
        ]
        print(
            f"\n{name}: {cfg.train.prompts_per_step} prompts x {cfg.rollout.group_size}, P={cfg.data.max_prompt}, T={cfg.rollout.max_new_tokens}"
        )
        print(summary_table(rows, columns))
        print(f"tiled / shared learner: {tiled / once:.2f}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
