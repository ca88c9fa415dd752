"""Supervised training: explicit chains, and Latent-SFT stage 2 on latent labels. The same loop, another target (cfg.sft.stage)."""

from __future__ import annotations

import pathlib
import sys
import time

import jax

from lgrpo.config import ExperimentConfig
from lgrpo.data.pipeline import sft_stream
from lgrpo.data.prompts import describe_prompt
from lgrpo.interrupt import EXIT_PREEMPTED, StopFlag
from lgrpo.metrics import progress
from lgrpo.sharding import put_batch
from lgrpo.train.health import check_gradients, evaluation_metrics, should_save, summary
from lgrpo.train.setup import Session, open_session
from lgrpo.train.step import sft_step

SUMMARY = ("sft/ce", "sft/kl", "grad/norm", "time/step_s")


def run(cfg: ExperimentConfig, workdir: str | pathlib.Path) -> int:
    """Trains, or goes on training, in `workdir`. Returns the exit code: 0, or 75 when a signal stopped it after saving."""
    session = open_session(cfg, pathlib.Path(workdir), rl=False)
    try:
        with StopFlag() as stop, jax.set_mesh(session.mesh):
            return train(session, stop)
    finally:
        session.close()


def train(session: Session, stop: StopFlag) -> int:
    """The loop. Everything that must survive a kill is in (state, data state)."""
    cfg, state = session.cfg, session.state
    data = sft_stream(cfg, session.tokenizer, cfg.data.train_split, batch=cfg.sft.batch_size)
    if session.restored:
        data.set_state(session.restored.data)
    else:
        print(f"first prompt: {describe_prompt(session.tokenizer, data.example_ids)}\n{data.dropped} records too long", file=sys.stderr)
    with progress(cfg.train.num_steps, cfg.sft.stage, cfg.logging.progress, initial=session.start) as bar:
        for done in range(session.start + 1, cfg.train.num_steps + 1):
            started = time.perf_counter()
            state, update = sft_step(state, put_batch(next(data), session.mesh), cfg=cfg)
            metrics = {name: float(value) for name, value in update.items()}
            metrics["time/step_s"] = time.perf_counter() - started
            check_gradients(metrics, cfg, done)
            metrics |= evaluation_metrics(session, state.params, done)
            if done % cfg.train.log_every == 0 or done == cfg.train.num_steps:
                session.writer.write(done, metrics)
            bar.set_postfix(ce=f"{metrics['sft/ce']:.4f}", kl=f"{metrics['sft/kl']:.4f}")
            bar.update()
            if should_save(cfg, done) or stop.requested:
                best = metrics.get("eval/pass@1_sampled")
                session.checkpoints.save(done, state=state, data=data.get_state(), buffer=None, cfg=cfg, extra=session.extra(), metric=best)
            if stop.requested and done < cfg.train.num_steps:
                return EXIT_PREEMPTED
    print(summary(session, SUMMARY))
    return 0
