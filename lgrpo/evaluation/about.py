"""What an evaluation was of. It is said before anything is computed and kept beside the numbers, so that only what is comparable is compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from lgrpo.config import AnswerConfig, ExperimentConfig
from lgrpo.data.registry import locate
from lgrpo.errors import UserError
from lgrpo.evaluation.measure import Batch, static_config
from lgrpo.evaluation.passes import SAMPLED, plan
from lgrpo.evaluation.shards import text_digest
from lgrpo.runs import storage
from lgrpo.runs.storage import Place

Which = Literal["newest", "best", "init"]
SAME = {
    "latent noise": "noise_scale",
    "answers": "answers",
    "samples a problem": "samples",
    "longest completion": "max_new_tokens",
    "grader": "grader",
    "template": "template",
    "instruction": "instruction",
    "worked examples": "few_shot",
}
"""What evaluations of the same problems must agree in, beside the weights, to be compared: in words, and the key in `describe`."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where the weights came from and why, the step of that checkpoint, and their digest (params_digest)."""

    source: str
    which: Which
    step: int
    digest: str


def find_weights(cfg: ExperimentConfig, workdir: Place, which: Which) -> Place:
    """Folder of the weights to evaluate: the workdir, or with `init` what a run in it would start from. Errors: UserError when there is none."""
    if which == "init":
        if not cfg.train.init_from:
            raise UserError("--weights init: train.init_from is empty, so the start is random weights; set --train.init-from")
        return storage.place(cfg.train.init_from)
    if (workdir / "checkpoints").is_dir():
        return workdir
    inside = sorted(file.parent.name for file in workdir.glob("*/checkpoints"))
    hint = f"there are some in its folders {', '.join(inside)}" if inside else "give the workdir of a run that saved one"
    start = f"; --weights init evaluates train.init_from={cfg.train.init_from}" if cfg.train.init_from else ""
    raise UserError(f"--workdir {workdir}: no checkpoints there ({'' if workdir.is_dir() else 'no such folder; '}{hint}){start}")


def settled(cfg: ExperimentConfig) -> ExperimentConfig:
    """The config that is evaluated: without thinking, prompts open none and all steps are ordinary tokens."""
    if cfg.evaluation.thinking:
        return cfg
    data = dataclasses.replace(cfg.data, think_start="")
    return dataclasses.replace(cfg, data=data, rollout=dataclasses.replace(cfg.rollout, mode="explicit"))


def data_name(cfg: ExperimentConfig, split: str) -> tuple[str, str]:
    """(data set, split) in words: `jsonl DIR`, `word_problems/medium`, `reasoning_gym/chain_sum` or a registered name."""
    source, split = locate(cfg.data.source, split)
    more = {
        "jsonl": f"jsonl {cfg.data.path}",
        "word_problems": f"word_problems/{cfg.data.difficulty}",
        "reasoning_gym": f"reasoning_gym/{cfg.data.gym.dataset}",
    }
    return more.get(source, source), split


def sampler_words(answer: AnswerConfig) -> str:
    """`T 0.6, top-p 0.9`, `greedy`."""
    if answer.sampler == "greedy":
        return "greedy"
    parts = [f"T {answer.temperature:g}"] + ["Gumbel top-1"] * (answer.sampler == "gumbel_top1")
    parts += [f"top-p {answer.top_p:g}"] * (answer.top_p < 1) + [f"top-k {answer.top_k}"] * bool(answer.top_k)
    return ", ".join(parts)


def describe(cfg: ExperimentConfig, weights: Weights, batches: Sequence[Batch], total: int, wanted: int) -> dict[str, Any]:
    """JSON-able. cfg: settled and resolved, its data.eval_split is what is evaluated; batches: its problems; total: records of the split; wanted: how
    many were asked for. problem_set tells two sets of problems apart (positions and gold answers)."""
    noisy = next(how for how in plan(cfg, full=False) if how.name == SAMPLED)
    data, split = data_name(cfg, cfg.data.eval_split)
    uids = [str(int(uid)) for prompts, _, real in batches for uid in prompts.uid[real]]
    golds = [gold for _, answers, real in batches for gold, keep in zip(answers, real, strict=True) if keep]
    latent = cfg.rollout.mode == "latent"
    return {
        "checkpoint": weights.source,
        "which": weights.which,
        "step": weights.step,
        "weights": weights.digest,
        "data": data,
        "split": split,
        "records": total,
        "left_out": wanted - len(golds),
        "problem_set": text_digest([*uids, *golds]),
        "thinks_in": "latents" if latent else "tokens" if cfg.evaluation.thinking else "nothing",
        "noise_scale": noisy.noise_scale if latent else None,
        "samples": noisy.samples,
        "answers": sampler_words(static_config(cfg, noisy).rollout.answer),
        "max_new_tokens": cfg.rollout.max_new_tokens,
        "grader": cfg.data.grader,
        "template": cfg.data.template,
        "few_shot": cfg.data.few_shot,
        "answer_budget": cfg.evaluation.answer_budget,
        "instruction": cfg.data.instruction,
    }


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """In what else than their weights two evaluations differ, in words; what one of them does not say is left out. Noise: of latents only."""
    keys = {what: key for what, key in SAME.items() if key in a and key in b}
    if not a.get("thinks_in") == b.get("thinks_in") == "latents":
        keys.pop("latent noise", None)
    return [f"{what}: {a[key]!r} and {b[key]!r}" for what, key in keys.items() if a[key] != b[key]]


def first_line(found: Sequence[dict[str, Any]], problems: Sequence[int]) -> str:
    """What is evaluated, and how: of one data set, or of several of a suite."""
    one = found[0]
    sets = "; ".join(f"{a['data']}, split {a['split']}: {n} of {a['records']} problems" for a, n in zip(found, problems, strict=True))
    noise = "" if one["noise_scale"] is None else f"latent noise {one['noise_scale']:g}, "
    how = {"latents": "thinks in latents", "tokens": "thinks in tokens", "nothing": "does not think: the whole output is graded"}
    return (
        f"{one['checkpoint']}: checkpoint of step {one['step']}, weights {one['weights']}, on {sets}\n"
        f"{how[one['thinks_in']]}; noise_free: no latent noise, greedy answers, 1 sample a problem; "
        f"sampled: {noise}answers at {one['answers']}, {one['samples']} sample(s) a problem"
    )
