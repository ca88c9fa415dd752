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
from lgrpo.runs.metrics import read_metrics, summary_table
from lgrpo.train.setup import Session, publish
from lgrpo.types import Params


def check_gradients(metrics: dict[str, float], cfg: ExperimentConfig, done: int) -> None:
    """Errors: UserError once cfg.optim.max_nonfinite updates in a row were skipped."""
    if metrics["grad/nonfinite"] >= cfg.optim.max_nonfinite:
        raise UserError(
            f"step {done}: {int(metrics['grad/nonfinite'])} non-finite gradients in a row (optim.max_nonfinite={cfg.optim.max_nonfinite}); "
            "the newest checkpoint is intact: lower optim.lr, see grad/norm and policy/ratio_max in metrics.jsonl and the batches in nonfinite/"
        )


def should_save(cfg: ExperimentConfig, done: int) -> bool:
    """At the end, and every cfg.checkpoint.every steps."""
    return done == cfg.train.num_steps or bool(cfg.checkpoint.every and done % cfg.checkpoint.every == 0)


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
    lines = read_metrics(session.workdir)
    span = max(1, len(lines) // 10)
    columns = ["metric", f"first {span} logged steps", f"last {span} logged steps"]

    def mean(part: list[dict[str, Any]], name: str) -> float | None:
        values = [line[name] for line in part if line.get(name) is not None]
        return float(np.mean(values)) if values else None

    rows = [dict(zip(columns, (name, mean(lines[:span], name), mean(lines[-span:], name)), strict=True)) for name in names]
    return summary_table(rows, columns)
