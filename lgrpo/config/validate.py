"""Rules that tie settings together, checked before anything is built: every violation at once, each with field, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from lgrpo.config import ExperimentConfig, MeshConfig, RolloutConfig
from lgrpo.config.gym import complaints
from lgrpo.config.overrides import leaves_with_bounds
from lgrpo.errors import UserError

Kind = Literal["train", "sft", "eval"]

_MAX_SEED = 2**32
# AdamW moves a weight by about the rate. Weights of size 0.02 to 0.1 in bfloat16 have a spacing of 1e-4 to 5e-4, and half of it rounds away.
_SMALLEST_BFLOAT16_RATE = 1e-4


def mesh_sizes(mesh: MeshConfig, device_count: int) -> tuple[int, int, int] | None:
    """(data, fsdp, tensor) with -1 filled in, or None when they cannot be laid over `device_count` devices."""
    sizes = [mesh.data, mesh.fsdp, mesh.tensor]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        return None
    known = math.prod(s for s in sizes if s > 0)
    sizes = [device_count // known if s == -1 else s for s in sizes]
    return (sizes[0], sizes[1], sizes[2]) if math.prod(sizes) == device_count else None


def _nearest_multiples(value: int, unit: int) -> str:
    """The multiples of `unit` around `value`, in words."""
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


def _ranges(cfg: ExperimentConfig) -> Iterator[str]:
    """Bounds of single settings."""
    for path, value, bounds in leaves_with_bounds(cfg):
        yield from (f"{path}={value}: {bound.complaint}" for bound in bounds if not bound.holds(value))
    if cfg.seed >= _MAX_SEED:
        yield f"seed={cfg.seed}: too large; use a number below 2**32"
    if cfg.algo.dual_clip <= 1:
        yield f"algo.dual_clip={cfg.algo.dual_clip}: would cut into the clip range; use a number > 1, such as 3"
    if cfg.evaluation.noise_scale < 0 and cfg.evaluation.noise_scale != -1:
        yield f"evaluation.noise_scale={cfg.evaluation.noise_scale}: use a number >= 0, or -1 for the noise of training"
    if any(scale < 0 for scale in cfg.evaluation.noise_sweep) or len(set(cfg.evaluation.noise_sweep)) < len(cfg.evaluation.noise_sweep):
        yield f"evaluation.noise_sweep={cfg.evaluation.noise_sweep}: use numbers >= 0, each once"
    if (traced := cfg.train.profile_steps) is not None and not traced[0] < traced[1]:
        yield f"train.profile_steps={traced}: the second number is the first step that is not traced; use for instance (10, 13)"
    curve, length = cfg.evaluation.curve, cfg.rollout.max_new_tokens
    if any(not 0 <= kept < length - 1 for kept in curve) or len(set(curve)) < len(curve):
        yield f"evaluation.curve={curve}: use numbers >= 0, each once, that leave room in rollout.max_new_tokens={length} for an answer"
    if (clamp := cfg.sft.label_clamp) is not None and clamp[0] >= clamp[1]:
        yield f"sft.label_clamp={clamp}: the low end is not below the high end; use for instance (-1.5, 3.0), or None"


def _without_thinking(cfg: ExperimentConfig) -> Iterator[str]:
    e = cfg.evaluation
    if e.thinking:
        return
    for name in ("counterfactual", "noise_sweep", "closure", "arms", "curve"):
        if value := getattr(e, name):
            yield f"evaluation.{name}={value}: looks at the thinking, but evaluation.thinking=False has none; leave it out or think"


def _model(cfg: ExperimentConfig) -> Iterator[str]:
    m = cfg.model
    if m.n_kv_heads > 0 and m.n_heads % m.n_kv_heads:
        near = _nearest_multiples(m.n_heads, m.n_kv_heads)
        yield f"model.n_heads={m.n_heads}: not divisible by model.n_kv_heads={m.n_kv_heads}; use {near} heads"
    if m.head_dim % 2:
        yield f"model.head_dim={m.head_dim}: rotary embeddings turn pairs of coordinates; use {m.head_dim + 1}"
    if m.vocab_size and cfg.rollout.latent.k > m.vocab_size:
        yield f"rollout.latent.k={cfg.rollout.latent.k}: more than model.vocab_size={m.vocab_size}; use at most {m.vocab_size}"
    if m.tie_embeddings and cfg.optim.freeze_embed != cfg.optim.freeze_unembed:
        yield (
            f"optim.freeze_embed={cfg.optim.freeze_embed}, optim.freeze_unembed={cfg.optim.freeze_unembed}: with model.tie_embeddings=True "
            "they are one table; give both the same value"
        )
    if (r := m.rope_scaling) is not None and not (
        0 < r.low_freq_factor < r.high_freq_factor and r.factor >= 1 and r.original_max_position >= 1
    ):
        yield (
            f"model.rope_scaling: factor={r.factor}, low_freq_factor={r.low_freq_factor}, high_freq_factor={r.high_freq_factor}, "
            f"original_max_position={r.original_max_position}: use factor >= 1, 0 < low < high, a positive length"
        )


def _tokens(cfg: ExperimentConfig) -> Iterator[str]:
    d, vocab = cfg.data, cfg.model.vocab_size
    for name in ("think_end_id", "eos_id"):
        value = getattr(d, name)
        if value < -1 or (vocab and value >= vocab):
            yield f"data.{name}={value}: no id of the vocabulary (size {vocab or 'not resolved yet'}); use -1 to take it from the tokenizer"
    if odd := [i for i in d.more_eos_ids if i < 0 or (vocab and i >= vocab)]:
        yield f"data.more_eos_ids={d.more_eos_ids}: {odd[0]} is no id of the vocabulary; leave them out and use data.more_eos"
    if d.think_end in d.more_eos or d.think_end_id in d.more_eos_ids:
        yield f"data.more_eos={d.more_eos}: holds data.think_end={d.think_end!r} (id {d.think_end_id}); use other tokens"
    if d.think_end == d.eos or (d.think_end_id == d.eos_id and d.eos_id >= 0):
        yield (
            f"data.think_end={d.think_end!r} (id {d.think_end_id}), data.eos={d.eos!r} (id {d.eos_id}): "
            "thinking and answer need different end tokens; change one of them"
        )
    if d.source == "jsonl" and not d.path:
        yield "data.path='': data.source=jsonl needs the folder with <split>.jsonl files; set --data.path"
    if d.source == "reasoning_gym":
        yield from complaints(d.gym)


def _latent(cfg: ExperimentConfig, kind: Kind) -> Iterator[str]:
    """Latent sampling, and what the law cannot be combined with."""
    c, length = cfg.rollout.latent, max(cfg.rollout.max_new_tokens, 1)
    if cfg.rollout.mode != "latent" and cfg.evaluation.counterfactual:
        yield "evaluation.counterfactual=True: rollout.mode=explicit has no latents to intervene on; set it to False"
    if cfg.rollout.mode != "latent":
        return
    yield from c.law.problems(cfg, kind == "train")
    if c.max_latent and c.min_latent > c.max_latent:
        yield f"rollout.latent.min_latent={c.min_latent}: above rollout.latent.max_latent={c.max_latent}; use at most {c.max_latent}"
    if c.min_latent and c.k == cfg.model.vocab_size:
        yield f"rollout.latent.k={c.k}: the whole vocabulary, but rollout.latent.min_latent forbids the end of thinking; use at most {c.k - 1}"
    for name in ("min_latent", "max_latent"):
        if (value := getattr(c, name)) >= length:
            yield f"rollout.latent.{name}={value}: leaves no room in rollout.max_new_tokens={length} for an answer; use less than {length}"
    if kind != "train":
        return
    if c.noise_scale == 0:
        yield "rollout.latent.noise_scale=0: the samples of a group would be equal and have no density; use a number > 0, such as 1.0"


def _answer(rollout: RolloutConfig, kind: Kind) -> Iterator[str]:
    """The sampler must have the density that the loss scores, softmax(z / T). What is biased by design: docs/deviations.md."""
    if kind != "train":
        return
    answer, why = rollout.answer, "the loss scores the whole softmax(z / T)"
    if answer.top_p < 1:
        yield f"rollout.answer.top_p={answer.top_p}: {why}; use 1.0 here, and evaluation.answer.top_p to truncate in evaluation"
    if answer.top_k > 0:
        yield f"rollout.answer.top_k={answer.top_k}: {why}; use 0 here, and evaluation.answer.top_k to truncate in evaluation"
    if answer.sampler == "greedy":
        yield "rollout.answer.sampler=greedy: it has no density to train on; use sample here, and evaluation.answer.sampler in evaluation"
    if answer.sampler == "gumbel_top1" and rollout.mode == "explicit":
        yield f"rollout.answer.sampler=gumbel_top1: {why}, and rollout.mode=explicit has no latent noise to share; use sample"


def _algo(cfg: ExperimentConfig) -> Iterator[str]:
    """Only meaningful for RL."""
    a = cfg.algo
    if cfg.rollout.group_size == 1:
        yield "rollout.group_size=1: advantages compare the samples of a group; use at least 2"
    if a.lone_survivor == "reward" and a.invalid == "keep":
        yield "algo.lone_survivor=reward: no sample is alone under algo.invalid=keep; set lone_survivor to zero, or invalid to exclude"
    if a.advantage != "group":
        given = {"baseline": a.baseline != "mean", "scale": a.scale != "std", "lone_survivor": a.lone_survivor != "zero"}
        for name in (name for name, other in given.items() if other):
            yield f"algo.{name}={getattr(a, name)}: algo.advantage={a.advantage} does not read it; leave it out, or use algo.advantage=group"
    if a.lora.dropout:
        yield f"algo.lora.dropout={a.lora.dropout}: the rollout samples without it, so that ratios would not start at 1; use 0"
    if a.old_logps == "replay" and a.dynamic.enabled and a.dynamic.max_age:
        yield (
            f"algo.old_logps=replay: groups may wait {a.dynamic.max_age} steps (algo.dynamic.max_age) and would then be taken for samples of the "
            "newest policy; use old_logps=rollout, or max_age=0"
        )
    if cfg.model.param_dtype == "bfloat16" and not a.lora.rank and cfg.optim.lr < _SMALLEST_BFLOAT16_RATE:
        yield (
            f"model.param_dtype=bfloat16: steps of optim.lr={cfg.optim.lr:g} are lost in weights with 8 bits of mantissa; use float32 "
            f"(model.dtype may stay bfloat16), algo.lora.rank, or a rate >= {_SMALLEST_BFLOAT16_RATE:g}"
        )
    if cfg.rollout.mode == "explicit" and a.first_token and a.winner_score == "latent_mean":
        yield "algo.winner_score=latent_mean: rollout.mode=explicit has no latent steps; use response_mean or answer_mean"


def _batches(cfg: ExperimentConfig, kind: Kind, ways: int) -> Iterator[str]:
    """Sizes that must divide. `ways`: data * fsdp, over which the leading axis of every batch is spread."""
    # Sizes out of range were reported before; here they only must not divide by zero.
    t, e, micro = cfg.train, cfg.evaluation, max(cfg.train.microbatch, 0)
    spread = f"the {ways} devices of mesh data*fsdp"
    if (kind == "eval" or e.every) and e.batch % ways:
        yield f"evaluation.batch={e.batch}: does not divide over {spread}; use {_nearest_multiples(e.batch, ways)}"
    if e.sample_chunk > 0 and e.samples % e.sample_chunk:
        yield f"evaluation.sample_chunk={e.sample_chunk}: does not divide evaluation.samples={e.samples}; use {math.gcd(e.samples, e.sample_chunk)}"
    if kind == "eval":
        return
    field, total, updates = (
        ("train.prompts_per_step", t.prompts_per_step, t.updates_per_step) if kind == "train" else ("sft.batch_size", cfg.sft.batch_size, 1)
    )
    if micro % ways:
        yield f"train.microbatch={micro}: does not divide over {spread}; use {_nearest_multiples(micro, ways)}, or 0 for the whole update"
        return
    unit = max(updates, 1) * (micro or ways)
    if total % unit:
        parts = [f"train.updates_per_step={updates}"] * (updates > 1) + [f"train.microbatch={micro}"] * bool(micro) + [spread] * (ways > 1)
        yield f"{field}={total}: does not divide by {', '.join(parts)}; use {_nearest_multiples(total, unit)}"


def _mesh(cfg: ExperimentConfig, sizes: tuple[int, int, int]) -> Iterator[str]:
    """Dimensions that are split over tensor and fsdp."""
    m, (_, fsdp, tensor) = cfg.model, sizes
    for name in ("n_heads", "n_kv_heads", "d_ff", "vocab_size"):
        if (value := getattr(m, name)) % tensor:
            yield f"model.{name}={value}: not divisible by mesh.tensor={tensor}; use an axis that divides it: {math.gcd(value, tensor)}"
    if m.d_model % fsdp:
        near = math.gcd(m.d_model, fsdp)
        yield f"model.d_model={m.d_model}: not divisible by mesh.fsdp={fsdp}; use an axis that divides it, such as {near}"


def _sft(cfg: ExperimentConfig) -> Iterator[str]:
    c = cfg.sft
    if c.stage == "latent" and c.labels == "superposition" and c.compression > cfg.rollout.latent.k:
        yield (
            f"sft.compression={c.compression}: a chunk may hold more tokens than rollout.latent.k={cfg.rollout.latent.k}; "
            f"use at most {cfg.rollout.latent.k}, or a larger k"
        )
    if c.stage == "latent" and c.labels == "encoder" and not c.label_path:
        yield "sft.label_path: empty, but sft.labels=encoder; give the folder that `--stage labels` wrote"
    if c.lora.dropout and not c.lora.rank:
        yield f"sft.lora.dropout={c.lora.dropout}: there are no adapters to drop from; set sft.lora.rank, or the dropout to 0"
    if c.patience and not cfg.evaluation.every:
        yield f"sft.patience={c.patience}: nothing is evaluated, so nothing gets better; set evaluation.every"
    if c.patience and not cfg.checkpoint.keep_best:
        yield f"sft.patience={c.patience}: would stop after the best and lose it; set checkpoint.keep_best=True"
    if c.patience and c.stage in ("encoder", "decoder", "union") and not c.heldout:
        yield f"sft.patience={c.patience}: stage 1 is judged by its held-out loss; set sft.heldout"


def _schedule(cfg: ExperimentConfig, kind: Kind) -> Iterator[str]:
    updates = cfg.train.num_steps * (cfg.train.updates_per_step if kind == "train" else 1)
    if cfg.optim.schedule == "cosine" and cfg.optim.warmup >= updates:
        yield f"optim.warmup={cfg.optim.warmup}: the run has {updates} updates, so schedule=cosine never starts; use less than {updates}"


def validate(cfg: ExperimentConfig, *, device_count: int, kind: Kind) -> list[str]:
    """Every problem of `cfg` for a run of `kind` on `device_count` devices, [] when there is none. Pure; needs no tokenizer.

    Rules about the vocabulary and the end tokens are checked as far as they are resolved (vocab_size > 0, ids >= 0).
    """
    problems = [*_ranges(cfg), *_without_thinking(cfg), *_model(cfg), *_tokens(cfg), *_latent(cfg, kind), *_answer(cfg.rollout, kind)]
    if kind == "train":
        problems += _algo(cfg)
    if kind == "sft":
        problems += _sft(cfg)
    if kind != "eval":
        problems += _schedule(cfg, kind)
    sizes = mesh_sizes(cfg.mesh, device_count)
    if sizes is None:
        m = cfg.mesh
        problems.append(
            f"mesh.data={m.data}, mesh.fsdp={m.fsdp}, mesh.tensor={m.tensor}: do not fill {device_count} device(s); "
            f"use sizes whose product is {device_count}, one of them may be -1"
        )
        return problems
    return [*problems, *_mesh(cfg, sizes), *_batches(cfg, kind, sizes[0] * sizes[1])]


def require_valid(cfg: ExperimentConfig, *, device_count: int, kind: Kind) -> None:
    """Errors: UserError listing every problem, one per line."""
    if problems := validate(cfg, device_count=device_count, kind=kind):
        raise UserError("\n  ".join([f"config: {len(problems)} problem(s) in {cfg.name!r}:", *problems]))
