"""One RL step's experience: sample, grade, filter, refill. Surplus groups wait in a bounded buffer that is part of the checkpoint."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import struct

from lgrpo.config import ExperimentConfig
from lgrpo.rewards.shared import measured
from lgrpo.runs import multihost
from lgrpo.sharding import make_mesh, put_batch
from lgrpo.train.owned import Pool, at_home
from lgrpo.train.steps.rl import regroup
from lgrpo.types import Array, Finish, PromptBatch, Rollout, Scored


@struct.dataclass
class Groups:
    """Graded groups. `born` is the step that sampled them, -1 in empty slots."""

    prompts: PromptBatch  # [B, ...]
    rollout: Rollout  # leaves [B, G, ...]; of several processes, outside `collect`, global arrays: all else is the same on each
    rewards: Array  # float32 [B, G]
    valid: Array  # bool [B, G]
    born: Array  # int32 [B]

    def rows(self, index: Array) -> Groups:
        """The groups at `index`."""
        return jax.tree.map(lambda x: np.asarray(x)[index], self)


def concatenate(parts: list[Groups]) -> Groups:
    """Groups one after another."""
    return jax.tree.map(lambda *xs: np.concatenate([np.asarray(x) for x in xs]), *parts)


def empty_buffer(cfg: ExperimentConfig) -> Groups | None:
    """A buffer of cfg.train.prompts_per_step empty slots: surplus is always less than one generation. None without dynamic sampling."""
    if not cfg.algo.dynamic.enabled:
        return None
    c, slots = cfg.rollout, cfg.train.prompts_per_step
    steps = (slots, c.group_size, c.max_new_tokens)
    rollout = Rollout(
        ids=np.zeros((*steps, c.latent.k), np.int32),
        scores=np.zeros((*steps, c.latent.k), np.float32),
        weights=np.zeros((*steps, c.latent.k), np.float32),
        is_latent=np.zeros(steps, bool),
        mask=np.zeros(steps, bool),
        loss_mask=np.zeros(steps, bool),
        logps=np.zeros(steps, np.float32),
        finish=np.zeros(steps[:2], np.int32),
        chain_len=np.zeros(steps[:2], np.int32),
        thought=np.zeros(steps[:2], bool),
    )
    prompts = PromptBatch(
        np.zeros((slots, cfg.data.max_prompt), np.int32), np.zeros((slots, cfg.data.max_prompt), bool), np.zeros(slots, np.int32)
    )
    zeros = np.zeros(steps[:2], np.float32)
    return Groups(prompts, rollout, zeros, zeros.astype(bool), np.full(slots, -1, np.int32))


def placed_buffer(cfg: ExperimentConfig) -> Groups | None:
    """empty_buffer; of several processes, each holds the slots of its devices."""
    buffer = empty_buffer(cfg)
    if buffer is None or not multihost.several():
        return buffer
    return buffer.replace(rollout=put_batch(buffer.rollout, make_mesh(cfg.mesh)))


def informative(rewards: Array, valid: Array) -> np.ndarray:
    """Groups whose valid samples differ in reward. Exact comparison. rewards, valid [B, G] -> bool [B]."""
    highest = np.where(valid, rewards, -np.inf).max(axis=-1)
    lowest = np.where(valid, rewards, np.inf).min(axis=-1)
    return np.asarray(highest > lowest)


def spread(used: int, want: int, updates: int) -> np.ndarray:
    """Slot of each of `used` groups in a batch of `want` that is cut into `updates` equal parts: dealt out in turn, unless all slots are filled."""
    index = np.arange(used)
    return index if used == want else index % updates * (want // updates) + index // updates


def select(buffer: Groups, fresh: list[Groups], *, want: int, step: int, max_age: int, updates: int = 1) -> tuple[Groups, Groups, int]:
    """Oldest groups first, `want` of them; the rest goes back into the buffer. Returns (batch of `want` slots, buffer, groups used).

    Missing groups are empty slots (nothing of them is masked in), so that the batch keeps its shape; each of the step's updates gets its share of what
    is there.
    """
    waiting = buffer.rows(np.flatnonzero((buffer.born >= 0) & (step - np.asarray(buffer.born) <= max_age)))
    ready = concatenate([waiting, *fresh])
    blank = jax.tree.map(np.zeros_like, buffer).replace(born=np.full_like(buffer.born, -1))
    used = min(want, len(ready.born))
    source = np.full(want, len(ready.born))
    source[spread(used, want, updates)] = np.arange(used)
    batch = concatenate([ready, blank.rows(np.arange(1))]).rows(source)
    # Surplus is the tail of the last generation, which has at most as many groups as the buffer has slots.
    surplus = ready.rows(np.arange(used, len(ready.born)))
    keep = min(len(surplus.born), len(buffer.born))
    surplus = surplus.rows(np.arange(len(surplus.born) - keep, len(surplus.born)))
    return batch, concatenate([surplus, blank.rows(np.arange(len(buffer.born) - keep))]), used


@dataclasses.dataclass
class Timer:
    """Seconds spent, by phase, since the last reset."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def measure(self, phase: str, work: Callable[..., Any], *args: Any) -> Any:
        """work(*args); waits for its arrays and adds its time to `phase`."""
        start = time.perf_counter()
        result = jax.block_until_ready(work(*args))
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        return result


def rollout_metrics(rollout: Rollout, scored: Scored) -> dict[str, float]:
    """Scalars of one generation, before any filter. rollout leaves [N, ...], NumPy or global."""
    rows = measured(rollout)
    steps, latent_steps, finish = rows["steps"], rows["latent_steps"], rows["finish"]
    valid = np.asarray(scored.valid)
    out = {
        "reward/mean": float(scored.rewards.mean()),
        "reward/correct": float(np.mean(scored.correct)),
        "reward/valid_mean": float(scored.rewards[valid].mean()) if valid.any() else 0.0,
        "rollout/latent_steps": float(latent_steps.mean()),
        "rollout/chain_tokens": float(rows["chain"].mean()),
        "rollout/answer_tokens": float(rows["answer"].mean()),
        "rollout/completion_tokens": float(steps.mean()),
        "rollout/latent_share": float(latent_steps.sum() / max(steps.sum(), 1)),
        "rollout/invalid_frac": float(1.0 - valid.mean()),
        "rollout/truncated_frac": float((finish == Finish.LENGTH).mean()),
        "rollout/forced_frac": float(rows["forced"].mean()),
        "rollout/nan_frac": float((finish == Finish.NAN).mean()),
    }
    return out | {f"grade/{name}": count / len(valid) for name, count in scored.errors.items()}


def _log(rollout: Rollout, scored: Scored, useful: float) -> dict[str, float]:
    return rollout_metrics(rollout, scored) | {"dynamic/informative_frac": useful}


def collect(
    sample: Callable[[PromptBatch, int], Rollout],
    grade: Callable[[Rollout, list[str]], Scored],
    data: Iterator[tuple[PromptBatch, list[str]]],
    buffer: Groups | None,
    *,
    cfg: ExperimentConfig,
    step: int,
    timer: Timer,
    interrupted: Callable[[], bool],
) -> tuple[Groups | None, Groups | None, Callable[[], dict[str, float]]]:
    """Experience of one RL step. sample(prompts, round) -> Rollout [N, ...]; grade(rollout, gold answers) -> Scored.

    Without dynamic sampling one generation is used as it is. With it, groups without spread are dropped and further prompts drawn until there are
    enough or cfg.algo.dynamic.max_rounds is reached; a starved step goes on with what there is. Returns (groups, buffer, metrics); groups is None
    when `interrupted` said so after a generation: the caller then saves the data state of the step's start. metrics() is the
    host's work on the rollouts' numbers; call it while the devices update.
    """
    dynamic, want, size = cfg.algo.dynamic, cfg.train.prompts_per_step, cfg.rollout.group_size
    fresh: list[Groups] = []
    logs: list[dict[str, float]] = []
    rounds = dynamic.max_rounds if buffer is not None else 1
    have = 0 if buffer is None else int(((buffer.born >= 0) & (step - buffer.born <= dynamic.max_age)).sum())
    kept, pool = buffer, None
    if buffer is not None and multihost.several():
        pool = Pool(buffer.rollout)
        buffer = buffer.replace(rollout=pool.add(buffer.rollout, buffer.born >= 0))
    while len(logs) < rounds and (have < want or not logs):
        prompts, answers = next(data)
        rollout = timer.measure("rollout", sample, prompts, len(logs))
        if interrupted():
            return None, kept, dict
        scored = timer.measure("grade", grade, rollout, answers)
        rewards, valid = scored.rewards.reshape(-1, size), scored.valid.reshape(-1, size)
        useful = informative(rewards, valid)
        if pool is None:
            rollout = rollout if buffer is None else jax.device_get(rollout)
        groups = Groups(
            prompts=prompts,
            rollout=regroup(rollout, size) if pool is None else pool.add(rollout, useful),
            rewards=rewards,
            valid=valid,
            born=np.full(len(answers), step, np.int32),
        )
        log = partial(_log, rollout, scored, float(useful.mean()))
        if buffer is None:
            return groups, None, log
        logs.append(timer.measure("grade", log))  # now, since it would keep every round's rollout
        fresh.append(groups.rows(np.flatnonzero(useful)))
        have += int(useful.sum())
    return _finish(buffer, fresh, logs, cfg, step, pool)


def _finish(
    buffer: Groups, fresh: list[Groups], logs: list[dict[str, float]], cfg: ExperimentConfig, step: int, pool: Pool | None
) -> tuple[Groups, Groups, Callable[[], dict[str, float]]]:
    want = cfg.train.prompts_per_step
    how = {"max_age": cfg.algo.dynamic.max_age, "updates": cfg.train.updates_per_step}
    batch, left, used = select(buffer, fresh, want=want, step=step, **how)
    metrics = {name: float(np.mean([log[name] for log in logs])) for name in logs[0]}
    metrics |= {
        "dynamic/rounds": float(len(logs)),
        "dynamic/used_frac": used / want,
        "dynamic/starved": float(used < want),
        "dynamic/buffered": float((np.asarray(left.born) >= 0).sum()),
    }
    if pool is not None:
        part = cfg.train.microbatch if cfg.algo.loss_mean == "microbatch" and cfg.train.microbatch else want // cfg.train.updates_per_step
        batch = batch.rows(at_home(pool.owner(batch.rollout), pool.home, part))
        batch, left = (groups.replace(rollout=pool.place(groups.rollout)) for groups in (batch, left))
    return batch, left, lambda: metrics
