"""Peak memory of the two phases of a run, measured in a process of its own: python tests/train/memory_probe.py. Prints one line of JSON.

On CPU the device's memory is the process's: VmHWM is reset after compilation (/proc/self/clear_refs), and read after each program has run.
"""

import ctypes
import gc
import json
import pathlib

import jax
import jax.numpy as jnp
from support import tiny

from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXACT
from lgrpo.latent.rollout import empty_record
from lgrpo.models.spec import spec_init
from lgrpo.sharding import make_mesh, put_batch
from lgrpo.train.memory import predict
from lgrpo.train.setup import publish, state_shardings, trained_specs
from lgrpo.train.steps.rl import group, rollout_step, train_step
from lgrpo.train.steps.update import init_state
from lgrpo.types import PromptBatch, TrainBatch


def config(preset=EXACT):
    sizes = {"d_model": 256, "n_layers": 3, "n_heads": 4, "head_dim": 64, "d_ff": 704, "vocab_size": 8000}
    rollout = {"group_size": 8, "max_new_tokens": 64}
    cfg = tiny(
        **{f"model__{k}": v for k, v in sizes.items()},
        **{f"rollout__{k}": v for k, v in rollout.items()},
        rollout__latent__k=10,
        train__prompts_per_step=8,
        data__max_prompt=64,
        mesh__data=1,
    )
    return apply_diff(cfg, preset)


def resident(name: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))


def start_over() -> None:
    """Gives freed memory back to the system and forgets the peak."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    cfg = config()
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        rows, specs = cfg.train.prompts_per_step, trained_specs(cfg, rl=True)
        shape = (rows, cfg.data.max_prompt)
        prompts = put_batch(PromptBatch(jnp.ones(shape, jnp.int32), jnp.ones(shape, bool), jnp.arange(rows)), mesh)

        def fresh():
            state = init_state(spec_init(specs, cfg.model, jax.random.key(0)), cfg, rl=True)
            return jax.device_put(state, state_shardings(cfg, mesh, rl=True))

        def roll(state):
            weights = publish(state.params, cfg, mesh)
            return jax.block_until_ready(rollout_step(weights, prompts, jax.random.key(1), cfg=cfg))

        def batch():
            record = group(jax.tree.map(jnp.copy, empty_record(rows * cfg.rollout.group_size, cfg.rollout)), cfg.rollout.group_size)
            ones = jnp.ones(record.mask.shape)
            return put_batch(TrainBatch(prompts, record.replace(mask=ones > 0, is_latent=ones > 0), ones, ones > 0), mesh)

        # Once for the compilation, whose memory is not the run's.
        state = fresh()
        roll(state)
        state = jax.block_until_ready(train_step(state, batch(), cfg=cfg)[0])
        del state
        start_over()
        before = resident("VmRSS")
        state = fresh()
        start_over()
        roll(state)
        peaks = {"rollout": resident("VmHWM") - before}
        inputs = batch()
        start_over()
        jax.block_until_ready(train_step(state, inputs, cfg=cfg))
        peaks["update"] = resident("VmHWM") - before
        predicted = {p.name: p.peak for p in predict(cfg, jax.devices()[:1], rl=True)}
    print(json.dumps({"measured": peaks, "predicted": predicted}))


if __name__ == "__main__":
    main()
