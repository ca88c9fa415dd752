"""Rollout by lgrpo. args: a Shape, preset (explicit, exact, paper), repeats, devices, cache_parts (default: the config's)."""

from __future__ import annotations

from typing import Any

import jax

from benchmarks.shapes import shape_of, whole
from benchmarks.timing import Kept, measure
from benchmarks.workers.common import experiment, params_of, prompt_batch
from lgrpo.config import MeshConfig
from lgrpo.keys import Stream, key_for
from lgrpo.sharding import make_mesh, put_batch
from lgrpo.train.setup import publish
from lgrpo.train.steps.rl import rollout_step


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of whole rollouts, prefill included, each with a key of its own."""
    shape = shape_of(args)
    cfg = experiment(shape, args["preset"], diff={"rollout.cache_parts": args["cache_parts"]} if "cache_parts" in args else None)
    mesh = make_mesh(MeshConfig())
    keys = iter(range(10_000))
    with jax.set_mesh(mesh):
        weights = publish(params_of(shape), cfg, mesh)
        prompts = put_batch(prompt_batch(shape), mesh)

        def sample() -> Any:
            return jax.block_until_ready(rollout_step(weights, prompts, key_for(0, next(keys), Stream.ROLLOUT), cfg=cfg))

        work = Kept(sample)
        found = measure(work, args["repeats"])
    sampled = jax.device_get(work.last)
    if args["preset"] != "explicit" and not sampled.is_latent.all():
        raise RuntimeError("thinking ended early: the rollout did less than the others'")
    completed = [ids[mask] for ids, mask in zip(sampled.ids[..., 0], sampled.mask, strict=True)]
    return found | whole(shape, completed) | {"devices": jax.device_count()}
