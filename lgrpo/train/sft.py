"""Supervised training: explicit chains, Latent-SFT stage 1 (encoder, decoder, both) and stage 2. The same loop, another target (cfg.sft.stage)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax

from lgrpo.algos.stage1 import STAGES
from lgrpo.config import ExperimentConfig
from lgrpo.data.pipeline import SftStream, describe_stream, sft_stream
from lgrpo.data.prompts import TextTokenizer
from lgrpo.errors import UserError
from lgrpo.runs import multihost, storage
from lgrpo.runs.interrupt import EXIT_PREEMPTED, StopFlag
from lgrpo.runs.metrics import progress
from lgrpo.runs.storage import PathLike
from lgrpo.sharding import batch_ways, put_batch
from lgrpo.train.guards import Guards
from lgrpo.train.health import evaluation_metrics, should_evaluate, should_save, summary
from lgrpo.train.profile import Profile
from lgrpo.train.setup import Session, agree_on_records, open_session
from lgrpo.train.steps.sft import sft_losses, sft_step, sft_weights
from lgrpo.types import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
    """What early stopping knows. It travels in the checkpoint."""

    best: float | None = None
    stale: int = 0
    """Evaluations since the best."""

    def after(self, measured: float) -> Progress:
        """With one more evaluation; higher is better, NaN never is."""
        better = not math.isnan(measured) and (self.best is None or measured > self.best)
        return Progress(measured, 0) if better else Progress(self.best, self.stale + 1)

    def exhausted(self, patience: int) -> bool:
        """Whether it is time to stop. patience 0: never."""
        return bool(patience) and self.stale >= patience


SUMMARY = ("sft/ce", "sft/kl", "grad/norm", "time/step_s")


def run(cfg: ExperimentConfig, workdir: PathLike) -> int:
    """Trains, or goes on training, in `workdir`. Returns the exit code: 0, or 75 when a signal stopped it after saving."""
    with StopFlag() as stop:
        session = open_session(cfg, storage.place(workdir), rl=False)
        try:
            with jax.set_mesh(session.mesh):
                code = EXIT_PREEMPTED if stop.agreed() else train(session, stop)
        finally:
            session.close()
    return session.leave(code)


def heldout_batches(cfg: ExperimentConfig, tokenizer: TextTokenizer, ways: int) -> Sequence[dict[str, Any]]:
    """The first records of the evaluation split with their chains and clean labels, in whole batches; [] when nothing is evaluated.

    Errors: UserError when the split has less than one batch of them.
    """
    if not cfg.evaluation.every or not cfg.sft.heldout:
        return []
    size = cfg.sft.batch_size
    stream = sft_stream(cfg, tokenizer, cfg.data.eval_split, batch=size, shuffle=False, ways=ways)
    count = min(-(-cfg.sft.heldout // size), stream.records // size)
    if not count:
        raise UserError(
            f"sft.heldout={cfg.sft.heldout}: split {cfg.data.eval_split!r} has {stream.records} records, less than one batch of {size}; "
            "use a smaller sft.batch_size, or 0 for no held-out loss"
        )
    return list(itertools.islice(stream, count))


def validation(
    session: Session, state: TrainState, heldout: Sequence[dict[str, Any]], done: int, stop: StopFlag
) -> tuple[dict[str, float] | None, float | None]:
    """Metrics of an evaluation, and the number that tells the best checkpoint (higher is better); nothing and None when none is due.

    None and None when a signal came before they were complete.
    """
    cfg = session.cfg
    if not should_evaluate(cfg, done):
        return {}, None
    metrics: dict[str, float] = {}
    if heldout:
        parts = []
        for batch in heldout:
            if stop.agreed():
                return None, None
            parts.append(sft_losses(state.params, put_batch(batch, session.mesh), cfg=cfg))
        ce, kl = (sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True))
        metrics["sft/heldout_ce"] = float(ce.value())
        if cfg.sft.stage == "latent":
            metrics["sft/heldout_kl"] = float(kl.value())
    if cfg.sft.stage in STAGES:
        return metrics, -metrics["sft/heldout_ce"] if heldout else None
    evaluated = evaluation_metrics(session, sft_weights(state.params, cfg), done, stop)
    return (None, None) if evaluated is None else (metrics | evaluated, evaluated["eval/pass@1_sampled"])


def _open_data(session: Session) -> SftStream:
    cfg = session.cfg
    data = sft_stream(cfg, session.tokenizer, cfg.data.train_split, batch=cfg.sft.batch_size, ways=batch_ways(session.mesh))
    agree_on_records(data.fingerprint, cfg)
    if session.restored:
        data.set_state(session.restored.data)
    else:
        multihost.say(describe_stream(data, session.tokenizer))
    return data


def train(session: Session, stop: StopFlag) -> int:
    """The loop. Everything that must survive a kill is in (state, data state, early-stopping progress)."""
    cfg, state = session.cfg, session.state
    watch = Progress(**session.restored.extra.get("progress", {})) if session.restored else Progress()
    if watch.exhausted(cfg.sft.patience):
        multihost.say(f"{session.workdir}: stopped early at step {session.start}, nothing left to do")
        return 0
    data, guards = _open_data(session), Guards(session)
    heldout = heldout_batches(cfg, session.tokenizer, batch_ways(session.mesh))

    def conclude(done: int, metrics: dict[str, float]) -> int | None:
        """What follows an update: evaluation, the line, the checkpoint. The exit code when the run ends here."""
        nonlocal watch
        more, measured = validation(session, state, heldout, done, stop)
        pending = {"pending": metrics} if more is None else {}
        watch = watch if measured is None else watch.after(measured)
        finished = more is not None and (done == cfg.train.num_steps or watch.exhausted(cfg.sft.patience))
        if more is not None and (done % cfg.train.log_every == 0 or finished or more):
            session.writer.write(done, metrics | more)
        # An evaluated step that is the best so far is worth a checkpoint of its own.
        best = measured is not None and watch.stale == 0 and cfg.checkpoint.keep_best
        stopping = stop.agreed()
        if should_save(session, done) or finished or best or stopping:
            extra = session.extra() | {"progress": dataclasses.asdict(watch), "finished": finished} | pending
            _save(session, done, state, data, extra, measured)
        return 0 if finished else EXIT_PREEMPTED if stopping else None

    with (
        progress(cfg.train.num_steps, cfg.sft.stage, cfg.logging.progress, initial=session.start) as bar,
        Profile(cfg, session.workdir) as profile,
    ):
        code = None if session.pending is None else conclude(session.start, session.pending)
        for done in range(session.start + 1, cfg.train.num_steps + 1):
            if code is not None:
                break
            profile.before(done)
            started, compiled = time.perf_counter(), session.clock.total
            batch = next(data)
            placed = put_batch(batch, session.mesh)
            fed = time.perf_counter()
            session.compute.add(session.compute.program(sft_step, state, placed, cfg=cfg).of())
            state, update = sft_step(state, placed, cfg=cfg)
            metrics = {name: float(value) for name, value in update.items()}
            ended = time.perf_counter()
            metrics |= {"time/data_s": fed - started, "time/train_s": ended - fed, "time/step_s": ended - started}
            metrics |= session.compute.metrics(ended - started, session.clock.total - compiled)
            guards.after(done, metrics, batch)
            bar.set_postfix(ce=f"{metrics['sft/ce']:.4f}", kl=f"{metrics['sft/kl']:.4f}")
            bar.update()
            code = conclude(done, metrics)
    if code == EXIT_PREEMPTED:
        return code
    if multihost.is_main():
        print(summary(session, SUMMARY))
    return 0


def _save(session: Session, done: int, state: TrainState, data: SftStream, extra: dict[str, Any], measured: float | None) -> None:
    if session.pending is not None and done == session.start:  # saved before its evaluation was complete
        if "pending" not in extra:
            session.checkpoints.amend(done, extra=extra, metric=measured)
        return
    session.save(done, state, data.get_state(), None, extra, measured)
