"""Several processes as one run. On a single process all of this does nothing.

Every process runs the same program on the same global arrays. What a host decides (another round, stop, save) must be decided alike
everywhere, or one waits for ever for the others: so it is a function of values that `host`, `total`, `agree` or `share` made equal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lgrpo.errors import UserError
from lgrpo.runs import partners, rendezvous


def initialize(patience: float = 300.0) -> None:
    """Join the other processes when the environment announces more than one; must run before any other use of JAX.

    Announced by JAX_NUM_PROCESSES > 1 (with JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID), by a TPU pod slice (several names in
    TPU_WORKER_HOSTNAMES), several TPU slices (MEGASCALE_COORDINATOR_ADDRESS), SLURM_NTASKS > 1 inside a SLURM step, or LGRPO_DISTRIBUTED=1,
    which leaves it to JAX to find out (a TPU VM knows its pod from its metadata, not from its environment).
    Processes other than the first write nothing on stdout from here on. patience: seconds to wait for the others.
    Errors: UserError when a variable is missing or left over, or when a process does not come.
    """
    env = os.environ
    _check_slices(env)
    if int(env.get("JAX_NUM_PROCESSES", "1")) > 1:
        if missing := [n for n in ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID") if not env.get(n)]:
            raise UserError(
                f"JAX_NUM_PROCESSES={env['JAX_NUM_PROCESSES']} but {' and '.join(missing)} not set; set all three on every host"
            )
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # used where the devices are CPUs
        address, processes, index = env["JAX_COORDINATOR_ADDRESS"], int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"])
        rendezvous.meet(address, processes, index, patience)
        jax.distributed.initialize(coordinator_address=address, num_processes=processes, process_id=index)
    elif _announced(env):
        with rendezvous.impatient(patience):
            jax.distributed.initialize(initialization_timeout=int(patience) + 60)  # JAX knows these clusters
    else:
        return
    partners.watch()
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (results are printed once)


def _announced(env: Mapping[str, str]) -> bool:
    hosts = env.get("TPU_WORKER_HOSTNAMES", "")
    slurm = "SLURM_STEP_ID" in env and int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))) > 1
    return env.get("LGRPO_DISTRIBUTED") == "1" or "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in env or slurm


def _check_slices(env: Mapping[str, str]) -> None:
    """Errors: UserError for MEGASCALE_* variables of another job: JAX would wait for slices that do not exist."""
    names = sorted(n for n in env if n.startswith("MEGASCALE_"))
    if "MEGASCALE_COORDINATOR_ADDRESS" not in env:
        return
    slices, mine = env.get("MEGASCALE_NUM_SLICES", ""), env.get("MEGASCALE_SLICE_ID", "")
    why = ""
    if not (slices.isdecimal() and int(slices) > 1):
        why = f"MEGASCALE_NUM_SLICES is {slices or 'not set'}"
    elif not (mine.isdecimal() and int(mine) < int(slices)):
        why = f"MEGASCALE_SLICE_ID is {mine or 'not set'} of {slices} slices"
    elif env.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        why = f"JAX_PLATFORMS is {env['JAX_PLATFORMS']}, and only TPUs have slices"
    if why:
        raise UserError(f"{', '.join(names)}: set, but {why}: left over from another job; unset them, or set all of them")


def agree_on(facts: Mapping[str, str], what: str, patience: float = 300.0) -> None:
    """That all processes have the same facts. what: names this comparison. Errors: UserError, on every process, for the first that differ."""
    found = partners.exchange(what, dict(facts), patience) or []
    for name in sorted({n for one in found for n in one} - {"host"}):
        groups: dict[str, list[str]] = {}
        for one in found:
            groups.setdefault(one.get(name, "absent"), []).append(one["host"])
        if len(groups) > 1:
            shown = "; ".join(f"{_shorten(value)} on {', '.join(hosts)}" for value, hosts in groups.items())
            raise UserError(f"the processes disagree on {name}: {shown}; start the same command, code and data on every host")


def _shorten(value: str) -> str:
    return value if len(value) < 60 else value[:57] + "..."


def several() -> bool:
    """Whether there is more than one process."""
    return jax.process_count() > 1


def require_one(command: str) -> None:
    """For what is not divided over processes. Errors: UserError where there are several."""
    if several():
        raise UserError(f"{command}: runs in one process; start it on one host that reads the checkpoint's storage")


def is_main() -> bool:
    """The one process that prints and writes metrics."""
    return jax.process_index() == 0


def require_alone(command: str, env: Mapping[str, str] = os.environ) -> None:
    """For what starts processes of its own, which would look for others. Errors: UserError where the environment announces several."""
    count = int(env.get("JAX_NUM_PROCESSES", "1")) > 1
    if count or _announced(env):
        name = "JAX_NUM_PROCESSES" if count else "LGRPO_DISTRIBUTED and what the cluster has set"
        raise UserError(f"{command}: starts processes of its own; unset {name}, or run what it starts over all hosts yourself")


def say(text: str) -> None:
    """A note on stderr, from the main process only."""
    if is_main():
        print(text, file=sys.stderr)


def barrier(name: str) -> None:
    """Wait until every process is here. All of them must call it, with the same name."""
    if several():
        multihost_utils.sync_global_devices(name)


def host(tree: Any) -> Any:
    """The same global arrays as whole NumPy arrays, on every process. Costs their full size in memory of each host and device."""
    if not several():
        return jax.device_get(tree)
    return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)) if _spread(x) else jax.device_get(x), tree)


def _spread(x: Any) -> bool:
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def total(x: np.ndarray) -> np.ndarray:
    """Sum over processes of equally shaped arrays of 32 bits or fewer, on every process."""
    return np.asarray(multihost_utils.process_allgather(x)).sum(0, dtype=x.dtype) if several() else x


def agree(flag: bool) -> bool:
    """True on every process as soon as it is on one."""
    return bool(total(np.array(int(flag), np.int32))) if several() else flag


def preemption_noticed(poll: int) -> bool:
    """Whether JAX's preemption service says to stop at this poll, the same on every process. poll: rises by one with every call."""
    return several() and jax.config.jax_enable_preemption_service and multihost_utils.reached_preemption_sync_point(poll)


def gather(value: Any) -> list[Any]:
    """The JSON-able values of all processes, in their order, on every process."""
    if not several():
        return [value]
    raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array(len(raw), np.int32)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(raw)] = raw
    parts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]


def share(make: Callable[[], Any]) -> Any:
    """make() of the main process, JSON-able, on every process; the others do not call it."""
    return gather(make() if is_main() else None)[0]


def divide(work: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
    """work(items), each process doing a contiguous part. Results are JSON-able and in the order of the items, the same on every process."""
    if not several():
        return work(items)
    edges = np.linspace(0, len(items), jax.process_count() + 1).astype(int)
    me = jax.process_index()
    return [x for part in gather(work(items[edges[me] : edges[me + 1]])) for x in part]


def own_rows(tree: Any) -> tuple[np.ndarray, Any]:
    """The rows that this process answers for: (their numbers int [n], the leaves [n, ...] as NumPy arrays).

    The leaves are global arrays [N, ...], all sharded alike along the first axis and along no other. Every row belongs to one process.
    """
    first = jax.tree.leaves(tree)[0]
    mine = [s for s in _once(first) if s.replica_id == 0]
    rows = [np.arange(first.shape[0])[shard.index[0]] for shard in mine]
    keep = {shard.device for shard in mine}

    def local(x: jax.Array) -> np.ndarray:
        parts = [np.asarray(s.data) for s in _once(x) if s.device in keep]
        return np.concatenate(parts) if parts else np.zeros((0, *x.shape[1:]), x.dtype)

    return np.concatenate(rows) if rows else np.zeros(0, np.int64), jax.tree.map(local, tree)


def _once(x: jax.Array) -> list[Any]:
    return sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)


def owners(x: jax.Array) -> np.ndarray:
    """The process that answers for each row (see own_rows) of a global array sharded along its first axis. int [N], the same on every process."""
    found = np.full(x.shape[0], -1)
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        rows = found[index[0]]
        rows[rows < 0] = device.process_index
    return found


def from_one(tree: Any, process: int) -> Any:
    """The NumPy arrays of one process, on every process; those of the others say what shape they have."""
    return multihost_utils.broadcast_one_to_all(tree, is_source=jax.process_index() == process)
