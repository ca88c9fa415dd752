"""Several processes as one run. On a single process all of this does nothing."""

from __future__ import annotations

import os

import jax
from jax.experimental import multihost_utils


def initialize() -> None:
    """Join the other processes when the environment announces more than one; must run before any other use of JAX.

    Announced by JAX_NUM_PROCESSES > 1 (with JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID), by a TPU pod slice (several names in
    TPU_WORKER_HOSTNAMES), several TPU slices (MEGASCALE_COORDINATOR_ADDRESS), or SLURM_NTASKS > 1 inside a SLURM step.
    """
    env = os.environ
    if int(env.get("JAX_NUM_PROCESSES", "1")) > 1:
        jax.distributed.initialize(
            coordinator_address=env["JAX_COORDINATOR_ADDRESS"],
            num_processes=int(env["JAX_NUM_PROCESSES"]),
            process_id=int(env["JAX_PROCESS_ID"]),
        )
    elif _announced(env):
        jax.distributed.initialize()  # JAX knows these clusters


def _announced(env: os._Environ[str]) -> bool:
    hosts = env.get("TPU_WORKER_HOSTNAMES", "")
    slurm = "SLURM_STEP_ID" in env and int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))) > 1
    return "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in env or slurm


def is_main() -> bool:
    """The one process that prints and writes metrics."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process is here. All of them must call it, with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
