"""The Latent-GRPO loop: prompts -> rollout -> score -> advantages -> update, and what surrounds it. Read `train` first."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lgrpo.config import ExperimentConfig
from lgrpo.data.pipeline import describe_stream, prompt_stream
from lgrpo.keys import Stream, key_for
from lgrpo.latent.buckets import longest, trim_completions, trim_prompts
from lgrpo.latent.rollout import decode_trips
from lgrpo.rewards.score import score
from lgrpo.rewards.shared import score_own
from lgrpo.runs import multihost, storage
from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag
from lgrpo.runs.metrics import progress
from lgrpo.runs.storage import PathLike
from lgrpo.sharding import put_batch
from lgrpo.train.collect import Groups, Timer, collect, placed_buffer
from lgrpo.train.compute import Flop
from lgrpo.train.guards import Guards
from lgrpo.train.health import check_rewards, evaluation_metrics, should_save, summary
from lgrpo.train.profile import Profile
from lgrpo.train.setup import Session, agree_on_records, open_session, publish
from lgrpo.train.steps.rl import make_train_batch, rollout_step, train_step, winner_step
from lgrpo.types import Params, PromptBatch, Rollout, Scored, TrainState

SUMMARY = ("reward/mean", "rollout/latent_steps", "rollout/chain_tokens", "rollout/answer_tokens", "rollout/invalid_frac", "time/step_s")


def run(cfg: ExperimentConfig, workdir: PathLike) -> int:
    """Trains, or goes on training, in `workdir`. Returns the exit code: 0, or 75 when a signal stopped it after saving."""
    with StopFlag() as stop:
        session = open_session(cfg, storage.place(workdir), rl=True, buffer=placed_buffer)
        try:
            with jax.set_mesh(session.mesh):
                code = EXIT_PREEMPTED if stop.agreed() else train(session, stop)
        finally:
            session.close()
    return session.leave(code)


def train(session: Session, stop: StopFlag) -> int:
    """The loop. Everything that must survive a kill is in (state, data state, buffer)."""
    cfg, state = session.cfg, session.state
    data = prompt_stream(cfg, session.tokenizer, cfg.data.train_split, batch=cfg.train.prompts_per_step)
    agree_on_records(data.fingerprint, cfg)
    buffer, guards = placed_buffer(cfg), Guards(session)
    if session.restored:
        data.set_state(session.restored.data)
        buffer = session.restored.buffer
    else:
        multihost.say(describe_stream(data, session.tokenizer))

    def save(done: int, data_state: dict[str, Any], metrics: dict[str, float], **more: Any) -> None:
        session.save(done, state, data_state, buffer, session.extra() | more, metrics.get("eval/pass@1_sampled"))

    if session.pending is not None and not _finish_step(session, stop):
        return EXIT_PREEMPTED
    with progress(cfg.train.num_steps, "rl", cfg.logging.progress, initial=session.start) as bar, Profile(cfg, session.workdir) as profile:
        for step in range(session.start, cfg.train.num_steps):
            profile.before(step + 1)
            timer, started, resume_point = Timer(), time.perf_counter(), data.get_state()
            compiled = session.clock.total
            groups, new_buffer, measure = _experience(session, state.params, data, buffer, step, timer, stop)
            if groups is None:  # interrupted after a generation: this step starts again from its prompts
                save(step, resume_point, {})
                return EXIT_PREEMPTED
            buffer = new_buffer
            state, metrics = timer.measure("train", _learn, session, state, groups, measure)
            metrics |= _timing(timer, time.perf_counter() - started, metrics, cfg)
            metrics |= session.compute.metrics(metrics["time/step_s"], session.clock.total - compiled)
            done = step + 1
            guards.after(done, metrics, groups)
            evaluated = evaluation_metrics(session, state.params, done, stop)
            if evaluated is None:
                save(done, data.get_state(), {}, pending=metrics)
                return EXIT_PREEMPTED
            metrics |= evaluated
            _log(session, done, metrics)
            bar.set_postfix(reward=f"{metrics['reward/mean']:.3f}", latents=f"{metrics['rollout/latent_steps']:.1f}")
            bar.update()
            stopping = stop.agreed()
            if should_save(session, done) or stopping:
                save(done, data.get_state(), metrics)
            if stopping and done < cfg.train.num_steps:
                return EXIT_PREEMPTED
    if multihost.is_main():
        print(summary(session, SUMMARY))
    return 0


def _log(session: Session, done: int, metrics: dict[str, float]) -> None:
    due = done % session.cfg.train.log_every == 0 or done == session.cfg.train.num_steps
    if (samples := session.samples.pop()) or due:
        session.writer.write(done, metrics if due else {}, samples)


def _finish_step(session: Session, stop: StopFlag) -> bool:
    """The evaluation in which the run was stopped, and its line. False when it is stopped again."""
    evaluated = evaluation_metrics(session, session.state.params, session.start, stop)
    if evaluated is None:
        return False
    _log(session, session.start, session.pending | evaluated)
    session.checkpoints.amend(session.start, extra=session.extra(), metric=evaluated.get("eval/pass@1_sampled"))
    return True


def _experience(
    session: Session, params: Params, data: Any, buffer: Groups | None, step: int, timer: Timer, stop: StopFlag
) -> tuple[Groups | None, Groups | None, Callable[[], dict[str, float]]]:
    """Samples and grades the groups of one step with the current weights."""
    cfg, mesh, compute = session.cfg, session.mesh, session.compute
    cost = Flop(0.0)  # of one generation
    asked: PromptBatch | None = None  # in the latest generation
    weights = publish(params, cfg, mesh)
    step_key = key_for(cfg.seed, step, Stream.ROLLOUT)

    def sample(prompts: PromptBatch, index: int) -> Rollout:
        nonlocal cost, asked
        asked = prompts
        key, placed = jax.random.fold_in(step_key, index), put_batch(trim_prompts(prompts, cfg.data.prompt_bucket), mesh)
        cost = compute.program(rollout_step, weights, placed, key, cfg=cfg)
        rollout = rollout_step(weights, placed, key, cfg=cfg)
        return put_batch(rollout, mesh) if multihost.several() else rollout  # whole groups on one host, for its grader

    def grade(rollout: Rollout, answers: list[str]) -> Scored:
        def one(rows: Rollout, gold: list[str]) -> Scored:
            return score(rows, gold, session.tokenizer, cfg)

        scored = score_own(one, rollout, answers) if multihost.several() else one(rollout, answers)
        check_rewards(np.asarray(scored.rewards), answers, step + 1)
        session.samples.take(step + 1, asked, rollout, answers, scored)
        compute.add(cost.of(decode_trips(longest(rollout), cfg.rollout)))
        return scored

    return collect(sample, grade, data, buffer, cfg=cfg, step=step, timer=timer, interrupted=stop.agreed)


def _learn(
    session: Session, state: TrainState, groups: Groups, measure: Callable[[], dict[str, float]]
) -> tuple[TrainState, dict[str, float]]:
    """Advantages and all updates of one step, and, while the devices are at it, the host's numbers: measure(). Donates `state`."""
    cfg = session.cfg
    groups = groups.replace(
        prompts=trim_prompts(groups.prompts, cfg.data.prompt_bucket), rollout=trim_completions(groups.rollout, cfg.train.completion_bucket)
    )
    groups = put_batch(groups, session.mesh)
    batch = make_train_batch(groups.prompts, groups.rollout, groups.rewards, groups.valid, cfg=session.cfg)
    session.compute.add(session.compute.program(train_step, state, batch, cfg=session.cfg).of())
    state, update = train_step(state, batch, cfg=session.cfg)
    if session.cfg.train.diagnostics != "off":
        update |= winner_step(batch.rollout, groups.rewards, groups.valid, cfg=session.cfg)
    metrics = measure()
    return state, metrics | {name: float(value) for name, value in jax.device_get(update).items()}


def _timing(timer: Timer, total: float, metrics: dict[str, float], cfg: ExperimentConfig) -> dict[str, float]:
    """Seconds by phase. time/host_frac: share of the step outside jitted code."""
    seconds = timer.seconds
    rollout_s, train_s = seconds.get("rollout", 0.0), seconds.get("train", 0.0)
    rows = cfg.train.prompts_per_step * cfg.rollout.group_size * metrics.get("dynamic/rounds", 1.0)
    return {
        "time/rollout_s": rollout_s,
        "time/grade_s": seconds.get("grade", 0.0),
        "time/train_s": train_s,
        "time/step_s": total,
        "time/host_frac": 1.0 - (rollout_s + train_s) / total,
        "perf/tokens_per_s": metrics["rollout/completion_tokens"] * rows / max(rollout_s, 1e-9),
    }
