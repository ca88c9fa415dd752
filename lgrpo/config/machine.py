"""model.dtype=auto: the type in which the machine at hand computes faster."""

from __future__ import annotations

import dataclasses
import pathlib

import jax

from lgrpo.config.settings import ExperimentConfig

CPUINFO = pathlib.Path("/proc/cpuinfo")


def has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16. False where its flags cannot be read."""
    try:
        return " amx_bf16" in CPUINFO.read_text()
    except OSError:
        return False


def best_dtype(backend: str) -> tuple[str, str]:
    """(type, why) for a backend of JAX. docs/performance.md has what was measured on CPUs."""
    if backend == "cpu":
        return ("bfloat16", "which this CPU multiplies by AMX") if has_amx() else ("float32", "on a CPU without AMX bfloat16 is no faster")
    return "bfloat16", f"the type of products on {backend}"


def settle_dtype(cfg: ExperimentConfig, begun: tuple[str, str] | None = None) -> tuple[ExperimentConfig, str]:
    """(cfg with a type in place of auto, what was chosen and why in one line; "" where nothing was to be chosen).

    begun: (type, why) of a run that has begun, in place of what the machine says.
    """
    if cfg.model.dtype != "auto":
        return cfg, ""
    dtype, why = begun or best_dtype(jax.default_backend())
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, dtype=dtype)), f"model.dtype=auto: {dtype}, {why}"
