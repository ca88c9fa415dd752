"""Rollout of completions that end at random: what finished rows cost. args: a Shape, repeats.

Explicit mode with the ends of thinking and of the answer among the sampled tokens: with random weights each has a chance of about 1 / vocab a step.
"""

from __future__ import annotations

from typing import Any

import jax

from benchmarks.shapes import shape_of
from benchmarks.timing import Kept, measure
from benchmarks.workers.common import experiment, params_of, prompt_batch
from lgrpo.config import MeshConfig
from lgrpo.keys import Stream, key_for
from lgrpo.sharding import make_mesh, put_batch
from lgrpo.train.setup import publish
from lgrpo.train.steps.rl import rollout_step


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of whole rollouts with the keys 0, 1, 2, ... in turn. tokens: of the last one, ends included."""
    shape = shape_of(args)
    cfg = experiment(shape, "explicit", diff={"data.think_end_id": 1, "data.eos_id": 2})
    mesh = make_mesh(MeshConfig())
    keys = iter(range(10_000))
    with jax.set_mesh(mesh):
        weights, prompts = publish(params_of(shape), cfg, mesh), put_batch(prompt_batch(shape), mesh)

        def sample() -> Any:
            return jax.block_until_ready(rollout_step(weights, prompts, key_for(0, next(keys), Stream.ROLLOUT), cfg=cfg))

        work = Kept(sample)
        found = measure(work, args["repeats"])
    lengths = sorted(int(n) for n in jax.device_get(work.last.mask).sum(-1))
    quartiles = [lengths[len(lengths) * q // 4] for q in (1, 2, 3)]
    return found | {"tokens": sum(lengths), "longest": lengths[-1], "length_quartiles": quartiles}
