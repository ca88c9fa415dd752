"""Time to the first finished RL step of the demo, from the start of the process. args: spawned (time.time() of the parent).

Whether the persistent compilation cache is empty or warm is the caller's affair: it sets JAX_COMPILATION_CACHE_DIR.
"""

from __future__ import annotations

import time
from typing import Any


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds since `spawned`, in all and after each stage. Imports count, so they are here."""
    marks = {}

    def mark(name: str) -> None:
        marks[name] = time.time() - args["spawned"]

    import jax
    import numpy as np

    from benchmarks.workers.demo_step import demo_config
    from lgrpo.data.pipeline import prompt_stream
    from lgrpo.keys import Stream, key_for
    from lgrpo.models.spec import init_params
    from lgrpo.rewards.score import score
    from lgrpo.train.setup import prepare
    from lgrpo.train.steps.rl import group, make_train_batch, rollout_step, train_step
    from lgrpo.train.steps.update import init_state

    mark("imported")
    cfg, tokenizer = prepare(demo_config("latent"), kind="train")
    prompts, answers = next(prompt_stream(cfg, tokenizer, "train", batch=cfg.train.prompts_per_step))
    params = jax.jit(lambda: init_params(cfg.model, key_for(0, 0, Stream.INIT)))()
    state = init_state(params, cfg, rl=True)
    mark("ready")
    sampled = jax.block_until_ready(rollout_step(state.params, prompts, key_for(0, 0, Stream.ROLLOUT), cfg=cfg))
    mark("rollout done")
    scored, size = score(jax.device_get(sampled), answers, tokenizer, cfg), cfg.rollout.group_size
    rewards, valid = (np.asarray(x).reshape(-1, size) for x in (scored.rewards, scored.valid))
    batch = make_train_batch(prompts, group(sampled, size), rewards, valid, cfg=cfg)
    jax.block_until_ready(train_step(state, batch, cfg=cfg))
    mark("step done")
    return {
        "first_s": marks["step done"],
        "seconds": [marks["step done"]],
        "cpu_seconds": [time.process_time()],
        "marks": {k: [v] for k, v in marks.items()},
    }
