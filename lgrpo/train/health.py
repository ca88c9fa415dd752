"""What both loops decide between two steps: stop on bad gradients, evaluate, save."""

from __future__ import annotations

from lgrpo.config import ExperimentConfig
from lgrpo.errors import UserError
from lgrpo.evaluation.evaluate import evaluate
from lgrpo.train.setup import Session, publish
from lgrpo.types import Params


def check_gradients(metrics: dict[str, float], cfg: ExperimentConfig, done: int) -> None:
    """Errors: UserError once cfg.optim.max_nonfinite updates in a row were skipped."""
    if metrics["grad/nonfinite"] >= cfg.optim.max_nonfinite:
        raise UserError(
            f"step {done}: {int(metrics['grad/nonfinite'])} non-finite gradients in a row (optim.max_nonfinite={cfg.optim.max_nonfinite}); "
            "the newest checkpoint is intact: lower optim.lr, and see grad/norm and policy/ratio_max in metrics.jsonl"
        )


def should_save(cfg: ExperimentConfig, done: int) -> bool:
    """At the end, and every cfg.checkpoint.every steps."""
    return done == cfg.train.num_steps or bool(cfg.checkpoint.every and done % cfg.checkpoint.every == 0)


def should_evaluate(cfg: ExperimentConfig, done: int) -> bool:
    """Every cfg.evaluation.every steps and at the end; never when that is 0."""
    return bool(cfg.evaluation.every) and (done % cfg.evaluation.every == 0 or done == cfg.train.num_steps)


def evaluation_metrics(session: Session, params: Params, done: int) -> dict[str, float]:
    """eval/ metrics when this step is due for them, else nothing."""
    cfg = session.cfg
    if not should_evaluate(cfg, done):
        return {}
    result = evaluate(publish(params, cfg, session.mesh), cfg, session.tokenizer, session.mesh)
    return {
        "eval/pass@1": result.clean["pass@1"]["value"],
        "eval/pass@1_sampled": result.sampled["pass@1"]["value"],
        "eval/chain_tokens": result.clean["chain_tokens"]["value"],
        "eval/latent_steps": result.clean["latent_steps"]["value"],
        "eval/invalid_frac": result.clean["invalid_frac"]["value"],
    }
