"""Settings of the study: what the stages share, how they differ, and what each budget changes."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from lgrpo.config import (
    AnswerConfig,
    CheckpointConfig,
    EvaluationConfig,
    ExperimentConfig,
    LatentConfig,
    OptimConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
)
from lgrpo.config.imported import imported, imported_data
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXACT, EXPLICIT, NAIVE_LATENT, NO_FIRST_TOKEN, PAPER
from lgrpo.data.gym import Gym

# Templates of gsm_symbolic whose worked solutions are arithmetic from what the problem states, two or three equations each.
TEMPLATES = (38, 1, 20, 60, 71, 5, 84, 82, 45, 58, 18, 42)
COMPRESSION, K = 1, 4
MAX_ANSWER = 10  # tokens of `#### 12` and its end, with room
KEPT = (0, 3, 6, 9, 12, 18, 24)
"""Chain tokens that the curve keeps; of latents as many as stand for them."""
TRANSFER = ("gsm8k", "svamp", "multiarith")
LONGEST, ROOM = 24, 16
"""Tokens of the longest chain; steps for what follows it: the end of thinking, an answer of at most 8 tokens, and some that were not needed."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes. Steps are updates of supervised training, and RL steps."""

    train: int
    test: int
    sft_steps: int
    latent_steps: int
    rl_steps: int
    batch: int
    prompts: int
    group: int
    problems: int
    samples: int
    seeds: int
    dtype: str = "float32"
    model: tuple[tuple[str, Any], ...] = ()
    """Settings of another model than the imported one: it starts from random weights."""
    stages: tuple[str, ...] = ()
    """Stages unless others are asked for; (): all."""


BUDGETS = {
    "smoke": Budget(
        *(200, 40, 4, 4, 2, 8, 4, 4, 8, 2, 1),
        model=(("n_layers", 1), ("d_model", 32), ("n_heads", 2), ("n_kv_heads", 1), ("head_dim", 16), ("d_ff", 64)),
        stages=("explicit_sft", "latent_sft", "exact", "explicit_grpo"),
    ),
    # So few supervised updates because the starts must have room: chosen on `valid`, where they then solve about half of the problems.
    "cpu": Budget(8000, 500, 120, 60, 40, 8, 16, 8, 150, 8, 1),
    "gpu": Budget(20000, 1000, 120, 60, 200, 8, 64, 8, 500, 8, 3, dtype="bfloat16"),
}
# name -> (kind, start, changes)
STAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "explicit_sft": ("sft", "", {}),
    "latent_sft": ("sft", "explicit_sft", {}),
    "exact": ("train", "latent_sft", EXACT | NO_FIRST_TOKEN),
    "exact_k2": ("train", "latent_sft", EXACT | NO_FIRST_TOKEN | {"rollout.latent.k": 2}),
    "gumbel_weighted": ("train", "latent_sft", PAPER | {"rollout.latent.law.density": "weighted"}),
    "paper": ("train", "latent_sft", PAPER | {"optim.lr": 1e-6}),
    "paper_lr": ("train", "latent_sft", PAPER),
    "naive_latent": ("train", "latent_sft", NAIVE_LATENT),
    "explicit_grpo": ("train", "explicit_sft", EXPLICIT | {"rollout.max_new_tokens": LONGEST + ROOM}),
}


def sampler(name: str, how: str = "sampled") -> dict[str, Any]:
    """Settings of a stage that say how its evaluation samples; how: `sampled`, or `noise_free`, where only the mixtures' size and sharpness count.

    An RL stage is compared with its start under its own: another K alone moves the accuracy of the same weights.
    """
    kind, _, changes = STAGES[name]
    if kind == "sft":
        changes = EXPLICIT if name == "explicit_sft" else EXACT
    law = {path: value for path, value in changes.items() if path.startswith("rollout.") and path != "rollout.max_new_tokens"}
    return law if how == "sampled" else {path: law.get(path) for path in ("rollout.mode", "rollout.latent.k", "rollout.latent.tau")}


def compared_as(name: str) -> str:
    """Folder, beside the evaluation of the start, of that under the RL stage's sampler; "" where the start has it already."""
    kind, start, _ = STAGES[name]
    return f"as_{name}" if kind == "train" and sampler(name) != sampler(start) else ""


def origins(name: str) -> list[str]:
    """A stage and those that it started from, newest first."""
    out = []
    while name:
        out.append(name)
        name = STAGES[name][1]
    return out


def latents(tokens: int, compression: int = COMPRESSION) -> int:
    """Latents that stand for so many chain tokens."""
    return -(-tokens // compression)


def data_settings(folder: pathlib.Path, budget: Budget, seed: int = 0) -> Gym:
    """What is written for training and tests: the same templates with other numbers, and twenty templates that training never sees."""
    return Gym(
        out=str(folder / "data"),
        chains="equations",
        steps=(1, 3),
        templates=TEMPLATES,
        held_out=20,
        train=budget.train,
        valid=max(40, budget.test // 4),
        test=budget.test,
        seed=seed,
    )


def _base(folder: pathlib.Path, budget: Budget, name: str, seed: int) -> ExperimentConfig:
    model = imported(folder / "weights", dtype=budget.dtype, **dict(budget.model))
    data = imported_data(
        folder / "weights", template="plain", source="jsonl", path=str(folder / "data"), max_prompt=160, prompt_bucket=32, eval_split="test"
    )
    return ExperimentConfig(
        name=name,
        seed=seed,
        model=model,
        data=data,
        checkpoint=CheckpointConfig(every=50, keep=1, keep_best=False),
        evaluation=EvaluationConfig(problems=budget.problems, samples=budget.samples, batch=min(budget.problems, 50)),
        rollout=RolloutConfig(max_new_tokens=latents(LONGEST) + ROOM, group_size=budget.group, latent=LatentConfig(k=K)),
    )


def _supervised(cfg: ExperimentConfig, name: str, budget: Budget, start: str) -> ExperimentConfig:
    latent = name == "latent_sft"
    explicit = RolloutConfig(mode="explicit", max_new_tokens=LONGEST + ROOM, latent=LatentConfig(k=1), answer=AnswerConfig(temperature=1.0))
    steps = budget.latent_steps if latent else budget.sft_steps
    sft = SftConfig(batch_size=budget.batch, max_chain=60, max_answer=MAX_ANSWER)
    if latent:
        sft = dataclasses.replace(sft, stage="latent", compression=COMPRESSION, superposition="ramp", label_noise=0.3)
    cfg = dataclasses.replace(
        cfg,
        rollout=cfg.rollout if latent else explicit,
        sft=sft,
        optim=OptimConfig(lr=1e-4, schedule="cosine", warmup=min(20, steps // 3), b2=0.98),
        train=TrainConfig(num_steps=steps, log_every=5, init_from=start),
    )
    sampler = {path: value for path, value in EXACT.items() if path.startswith("rollout.")}
    return apply_diff(cfg, sampler) if latent else cfg


def stage_config(name: str, folder: pathlib.Path, budget: Budget, seed: int) -> ExperimentConfig:
    """Config of a stage. folder: of the study, which holds weights and data already."""
    kind, origin, changes = STAGES[name]
    runs = folder / f"seed{seed}"
    start = str(runs / origin) if origin else "" if budget.model else str(folder / "weights")
    cfg = _base(folder, budget, name, seed)
    if kind == "sft":
        return _supervised(cfg, name, budget, start)
    train = TrainConfig(num_steps=budget.rl_steps, prompts_per_step=budget.prompts, microbatch=min(4, budget.prompts), init_from=start)
    cfg = dataclasses.replace(cfg, optim=OptimConfig(lr=1e-5), train=train)
    return apply_diff(cfg, changes)


def with_arms(cfg: ExperimentConfig) -> ExperimentConfig:
    """A stage's config with what its thinking carries. It is no part of the stage: arms are added to its finished evaluation."""
    curve = tuple(latents(n) if cfg.rollout.mode == "latent" else n for n in KEPT)
    return apply_diff(cfg, {"evaluation.arms": True, "evaluation.curve": curve, "evaluation.answer_budget": MAX_ANSWER})


def start_as(name: str, folder: pathlib.Path, budget: Budget, seed: int) -> ExperimentConfig:
    """Config of a stage's start that samples as the stage does."""
    start = stage_config(STAGES[name][1], folder, budget, seed)
    return dataclasses.replace(start, rollout=stage_config(name, folder, budget, seed).rollout)


def held_out(cfg: ExperimentConfig) -> ExperimentConfig:
    """Templates that training never saw."""
    return apply_diff(cfg, {"data.eval_split": "held_out"})


def transfer(cfg: ExperimentConfig, folder: str) -> ExperimentConfig:
    """Problems that people wrote, from <folder>/<name>_test.jsonl. They are longer than those of training."""
    return apply_diff(cfg, {"data.path": folder, "data.max_prompt": 320, "evaluation.samples": 1})
