"""What both loops do besides training: stop on bad gradients, evaluate, decide to save, sum up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lgrpo.config import ExperimentConfig
from lgrpo.errors import UserError
from lgrpo.evaluation.closure import closure_metrics
from lgrpo.evaluation.evaluate import evaluate
from lgrpo.runs.interrupt import StopFlag
from lgrpo.runs.metrics import summary_table
from lgrpo.train.setup import Session, publish
from lgrpo.types import Params


def check_gradients(metrics: dict[str, float], session: Session, done: int) -> None:
    """Errors: UserError once cfg.optim.max_nonfinite updates in a row were skipped."""
    cfg, streak = session.cfg, int(metrics["grad/nonfinite"])
    if streak < cfg.optim.max_nonfinite:
        return
    session.checkpoints.wait()
    good, lr = session.checkpoints.latest(), f"{cfg.optim.lr / 3:.2g}"
    mend = f"start again in a new --workdir with --optim.lr {lr}"
    if good is not None:
        mend = f"the last good step is {good}: run the same command with --checkpoint.rollback {good} --optim.lr {lr}"
    raise UserError(
        f"step {done}: {streak} non-finite gradients in a row (optim.max_nonfinite={cfg.optim.max_nonfinite}); {mend}; "
        "see grad/norm and policy/ratio_max in metrics.jsonl and the batches in nonfinite/"
    )


def check_rewards(rewards: np.ndarray, answers: Sequence[str], step: int) -> None:
    """rewards: [N], rows of a prompt together; answers: gold of each prompt. Errors: UserError for NaN or inf, of which nothing can be learned."""
    bad = np.flatnonzero(~np.isfinite(rewards))
    if len(bad):
        gold = answers[bad[0] // (len(rewards) // len(answers))]
        raise UserError(
            f"step {step}: {len(bad)} of {len(rewards)} rewards are not finite (the first is {rewards[bad[0]]}, where gold is {gold!r}); "
            "mend the reward function: a completion without a verdict gets 0"
        )


def should_save(session: Session, done: int) -> bool:
    """At the end, every cfg.checkpoint.every steps, and when a checkpoint was due before and had to wait."""
    cfg = session.cfg
    return session.held or done == cfg.train.num_steps or bool(cfg.checkpoint.every and done % cfg.checkpoint.every == 0)


def should_evaluate(cfg: ExperimentConfig, done: int) -> bool:
    """Every cfg.evaluation.every steps and at the end; never when that is 0."""
    return bool(cfg.evaluation.every) and (done % cfg.evaluation.every == 0 or done == cfg.train.num_steps)


def evaluation_metrics(session: Session, params: Params, done: int, stop: StopFlag) -> dict[str, float] | None:
    """eval/ metrics when this step is due for them, else nothing; None when a signal came before they were complete."""
    cfg = session.cfg
    if not should_evaluate(cfg, done):
        return {}
    weights = publish(params, cfg, session.mesh)
    result = evaluate(weights, cfg, session.tokenizer, session.mesh, interrupted=stop.agreed)
    if result is None:
        return None
    asked = cfg.evaluation.closure if cfg.rollout.mode == "latent" else 0
    closure = closure_metrics(weights, cfg, session.tokenizer, session.mesh, asked) if asked else {}
    return closure | {
        "eval/pass@1": result.clean["pass@1"]["value"],
        "eval/pass@1_sampled": result.sampled["pass@1"]["value"],
        "eval/chain_tokens": result.clean["chain_tokens"]["value"],
        "eval/latent_steps": result.clean["latent_steps"]["value"],
        "eval/invalid_frac": result.clean["invalid_frac"]["value"],
    }


def summary(session: Session, names: Sequence[str]) -> str:
    """Means over the first and the last tenth of the run's logged steps, as a table."""
    lines = session.writer.read()
    span = max(1, len(lines) // 10)
    columns = ["metric", f"first {span} logged steps", f"last {span} logged steps"]

    def mean(part: list[dict[str, Any]], name: str) -> float | None:
        values = [line[name] for line in part if line.get(name) is not None]
        return float(np.mean(values)) if values else None

    rows = [dict(zip(columns, (name, mean(lines[:span], name), mean(lines[-span:], name)), strict=True)) for name in names]
    return summary_table(rows, columns)
