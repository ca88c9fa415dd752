"""Which passes an evaluation makes: how completions are sampled, and which passes are compared with the noise-free one."""

from __future__ import annotations

import dataclasses

from lgrpo.config import ExperimentConfig
from lgrpo.latent.intervene import Kind

NOISE_FREE, SAMPLED, SWEEP, COUNTERFACTUAL, KEPT = "noise_free", "sampled", "noise=", "latents=", "kept="
COMPARED = ("counterfactual", "arms", "curve")
"""Parts of an evaluation whose passes are compared with the noise-free one, problem by problem."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """How completions are sampled. `chunk` of the `samples` of a problem are sampled at once."""

    name: str
    noise_scale: float
    samples: int = 1
    chunk: int = 1
    greedy: bool = True
    kind: Kind | None = None
    kept: int = 0
    """Steps of thinking that kind=CUT leaves."""
    budget: int = 0
    """Tokens of the answer that count; 0: all."""


UNDISTURBED = Pass(NOISE_FREE, 0.0)


def _changed(name: str, kind: Kind) -> Pass:
    return Pass(f"{COUNTERFACTUAL}{name}", 0.0, kind=kind)


def _cut(cfg: ExperimentConfig, kept: int | None) -> Pass:
    """Thinking cut after `kept` steps (None: not cut), and at most evaluation.answer_budget tokens of the answer."""
    budget = cfg.evaluation.answer_budget
    name = f"{KEPT}{'all' if kept is None else kept},answer={budget or 'all'}"
    return Pass(name, 0.0, kind=None if kept is None else Kind.CUT, kept=kept or 0, budget=budget)


def compared(cfg: ExperimentConfig) -> dict[str, dict[str, Pass]]:
    """Passes by name for each of COMPARED that the config asks for. The same pass may stand in several of them and is made once."""
    ev, latent = cfg.evaluation, cfg.rollout.mode == "latent"
    out: dict[str, dict[str, Pass]] = {name: {} for name in COMPARED}
    if ev.counterfactual:
        kinds = {kind.name.lower(): kind for kind in Kind if kind not in (Kind.NONE, Kind.FIRST, Kind.CUT)}
        out["counterfactual"] = {name: _changed(name, kind) for name, kind in kinds.items()} | {"dropped": _changed("dropped", Kind.CUT)}
    if ev.arms:
        out["arms"] = {"forced": _cut(cfg, None), "floor": _cut(cfg, 0)}
        if latent:
            out["arms"]["hardened"] = _changed("hardened", Kind.HARDENED)
    out["curve"] = {str(kept): _cut(cfg, kept) for kept in ev.curve}
    return out


def plan(cfg: ExperimentConfig, *, full: bool) -> list[Pass]:
    """The passes that the config asks for, each once; without `full` only the noise-free and the sampled one."""
    ev = cfg.evaluation
    scale = ev.noise_scale if ev.noise_scale >= 0 else cfg.rollout.latent.noise_scale
    noisy = {"samples": ev.samples, "chunk": ev.sample_chunk or ev.samples, "greedy": False}
    passes = [UNDISTURBED, Pass(SAMPLED, scale, **noisy)]
    if full:
        passes += [Pass(f"{SWEEP}{s:g}", s, **noisy) for s in ev.noise_sweep]
        passes += [how for part in compared(cfg).values() for how in part.values()]
    return list({how.name: how for how in passes}.values())
