"""What is measured: a list of jobs, each a worker with arguments and an environment. Imports nothing large, for it runs in the parent."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from typing import Any, Literal

Args = dict[str, Any]

TITLES = {
    "M": "M. The machine: matrix product and copy",
    "A": "A. Rollout: 32 prompts of 64 tokens, group 8, 64 new tokens",
    "B": "B. Update: 256 sequences of 64 + 64 tokens, value and gradient",
    "C": "C. One latent sampling step, K = 10",
    "D": "D. RL step of the demo, by phase",
    "E": "E. Growth, and time to the first step",
    "F": "F. Uneven completions: 32 prompts of 64 tokens, group 8, up to 256 new tokens",
    "G": "G. Update: operations, and what forming the logits once would save",
    "H": "H. Memory: peak of whole runs of 135M parameters, MiB",
}

QUICK: dict[str, Args] = {
    "M": {"size": 256, "megabytes": 8},
    "A": {"vocab": 500, "prompts": 2, "group": 2, "prompt_len": 8, "new": 8, "layers": 1},
    "B": {"vocab": 500, "prompts": 2, "group": 2, "prompt_len": 8, "new": 8, "layers": 1},
    "C": {"rows": 4, "vocab": 2000},
    "D": {},
    "E": {"layers": 1, "width": 64, "ff": 128},
    "F": {"prompts": 2, "group": 4, "prompt_len": 8, "new": 24, "layers": 1, "vocab": 12},
    "G": {},
    "H": {"layers": 1},
}
"""Arguments that make the suite a test of itself (--quick)."""

BASE: Args = {"prompts": 8, "prompt_len": 64, "group": 8, "new": 32, "vocab": 8000, "devices": 1}
SWEEPS: dict[str, tuple[str, tuple[int, ...]]] = {
    "group": ("group size G", (1, 2, 4, 8, 16, 32)),
    "prompt_len": ("prompt length P", (32, 64, 128, 256, 512)),
    "new": ("completion length T", (16, 32, 64, 128, 256)),
    "vocab": ("vocabulary V", (2000, 8000, 32000, 128000)),
    "devices": ("simulated devices", (1, 2, 8)),
}
"""Workload E: each is varied alone from BASE."""

LATENT_SHAPES = ((64, 128256), (256, 32000))
Engine = Literal["tunix", "vllm"]
"""Peers of workload A in environments of their own."""
PEERS_A = ("A/hf-dynamic", "A/hf-static")


@dataclasses.dataclass(frozen=True)
class Job:
    """One process, or `processes` of them pooled."""

    key: str  # <workload>/<name>
    worker: str
    args: Args
    venv: Literal["bench", Engine] = "bench"
    devices: int = 1
    cache: Literal["off", "cold", "warm"] = "off"
    processes: int = 1

    @property
    def workload(self) -> str:
        """Its letter."""
        return self.key.split("/")[0]


def growth_key(worker: Literal["rollout", "update"], **changes: int) -> str:
    """Key of a point of workload E, by its whole shape: sweeps that meet in BASE share it."""
    at = BASE | changes
    return f"E/{worker}-G{at['group']}-P{at['prompt_len']}-T{at['new']}-V{at['vocab']}-x{at['devices']}"


def latent_key(name: str, rows: int, vocab: int) -> str:
    """Key of a point of workload C."""
    return f"C/{name}-{rows}x{vocab}"


def _growth() -> list[Job]:
    jobs: dict[str, Job] = {}
    for name, (_, values) in SWEEPS.items():
        for value, worker in itertools.product(values, ("rollout", "update")):
            key, at = growth_key(worker, **{name: value}), BASE | {name: value}
            devices = at.pop("devices")
            more = {"preset": "exact"} if worker == "rollout" else {"share_prefix": True}
            jobs[key] = Job(key, f"{worker}_lgrpo", at | more, devices=devices)
    return list(jobs.values())


def jobs(repeats: int, *, quick: bool = False) -> list[Job]:
    """The whole suite, in order."""
    machine = {"size": 2048, "megabytes": 512}
    found = [Job("M/jax", "machine_jax", machine), Job("M/torch", "machine_torch", machine)]
    found += [Job(f"A/lgrpo-{preset}", "rollout_lgrpo", {"preset": preset}) for preset in ("explicit", "exact", "paper")]
    found += [Job(f"A/hf-{cache}", "rollout_hf", {"cache": cache}) for cache in ("dynamic", "static")]
    found += [Job(f"A/{peer}", f"rollout_{peer}", {}, venv=peer) for peer in typing.get_args(Engine)]
    for tables, frozen in (("", False), ("-frozen", True)):
        at = {"frozen": frozen}
        found += [Job(f"B/lgrpo{tables}", "update_lgrpo", {"share_prefix": True} | at)]
        found += [Job("B/lgrpo-tiled", "update_lgrpo", {"share_prefix": False} | at)] if not frozen else []
        found += [Job(f"B/jax-full{tables}", "update_jax", at), Job(f"B/torch-full{tables}", "update_torch", at)]
        found += [Job(f"B/torch-fused{tables}", "update_torch", at | {"chunk": 1024})]
    found += [Job("B/lgrpo-tokens", "update_lgrpo", {"share_prefix": True, "tokens": True}), Job("B/trl-tokens", "update_trl", {})]
    for rows, vocab in LATENT_SHAPES:
        at = {"rows": rows, "vocab": vocab, "k": 10}
        found += [Job(latent_key(step, rows, vocab), "latent_lgrpo", at | {"step": step}) for step in ("exact", "paper", "token")]
        found += [Job(latent_key("torch", rows, vocab), "latent_torch", at), Job(latent_key("jax-sort", rows, vocab), "latent_jax", at)]
    found += [Job(f"D/{config}", "demo_step", {"config": config}) for config in ("latent", "explicit")]
    found += _growth()
    uneven = {"vocab": 64, "new": 256}
    found += [Job("F/loop", "rollout_uneven", uneven)]
    found += [Job("G/flop", "update_flop", {}), *(Job(f"H/{kind}", "run_memory", {"kind": kind}) for kind in ("sft", "rl"))]
    starts = 2 if quick else max(repeats, 5)
    found += [Job(f"E/start-{cache}", "startup", {}, cache=cache, processes=starts) for cache in ("cold", "warm")]
    changes = QUICK if quick else {}
    return [dataclasses.replace(job, args=job.args | changes.get(job.workload, {}) | {"repeats": repeats}) for job in found]


def selected(all_jobs: list[Job], only: list[str] | None) -> list[Job]:
    """Jobs whose workload, or the beginning of whose key, is in `only` (None: all). Errors: ValueError for a selector that matches nothing."""
    if not only:
        return all_jobs
    for text in only:
        if not any(job.key.startswith(text) for job in all_jobs):
            raise ValueError(f"--only {text}: nothing begins with it; workloads are {' '.join(TITLES)}, a job is e.g. {all_jobs[0].key}")
    return [job for job in all_jobs if any(job.key.startswith(text) for text in only)]
