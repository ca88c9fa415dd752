"""Peak memory of a whole supervised run with saves and a restore in it, in a process of its own. Prints one line of JSON. See memory_probe.py."""

import json
import pathlib
import sys

import jax
from memory_probe import resident, start_over
from support import tiny

from lgrpo.config.overrides import apply_diff
from lgrpo.data.pipeline import sft_stream
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.models.spec import spec_init
from lgrpo.runs.checkpoint import Checkpoints
from lgrpo.sharding import make_mesh, put_batch
from lgrpo.train.memory import predict, save_bytes
from lgrpo.train.setup import abstract_state, state_shardings, trained_specs
from lgrpo.train.steps.sft import sft_step
from lgrpo.train.steps.update import init_state


def main(folder: pathlib.Path) -> None:
    sizes = {"d_model": 512, "n_layers": 4, "n_heads": 8, "n_kv_heads": 8, "head_dim": 64, "d_ff": 2048, "vocab_size": 0}
    cfg = tiny(**{f"model__{name}": value for name, value in sizes.items()}, mesh__data=1)
    data = {"data_dir": str(folder / "data"), "difficulty": "mini", "think_end_id": -1, "eos_id": -1, "max_prompt": 32}
    sft = {"max_chain": 16, "max_answer": 4, "batch_size": 4, "stage": "explicit"}
    cfg = apply_diff(cfg, {f"data.{n}": v for n, v in data.items()} | {f"sft.{n}": v for n, v in sft.items()})
    tokenizer = load_tokenizer(cfg.data)
    cfg = resolve(cfg, tokenizer)
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        specs = trained_specs(cfg, rl=False)
        placed = state_shardings(cfg, mesh, rl=False)
        fresh = jax.jit(lambda key: init_state(spec_init(specs, cfg.model, key), cfg, rl=False), out_shardings=placed)
        stream = sft_stream(cfg, tokenizer, cfg.data.train_split, batch=4)

        def update(state):
            return jax.block_until_ready(sft_step(state, put_batch(next(stream), mesh), cfg=cfg)[0])

        update(fresh(jax.random.key(0)))  # compiles, and its state is gone
        checkpoints = Checkpoints(folder / "run", cfg.checkpoint)
        start_over()
        before = resident("VmRSS")
        state = update(fresh(jax.random.key(0)))
        start_over()
        state = update(state)
        peaks = {"update": resident("VmHWM") - before}
        start_over()
        for step in (1, 2, 3):
            checkpoints.save(step, state=state, data={}, buffer=None, cfg=cfg, extra={}, metric=None)
            state = update(state)
        checkpoints.wait()
        peaks["update beside a save"] = resident("VmHWM") - before
        del state
        start_over()
        state = checkpoints.restore(abstract_state(cfg, mesh, rl=False), None, cfg).state
        update(jax.block_until_ready(state))
        peaks["restore and update"] = resident("VmHWM") - before
        checkpoints.close()
    (found,) = predict(cfg, jax.devices()[:1], rl=False)
    beside = found.peak + save_bytes(cfg, 1, rl=False)
    print(json.dumps({"measured": peaks, "predicted": {"update": found.peak, "update beside a save": beside}}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
