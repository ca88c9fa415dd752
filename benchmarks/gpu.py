"""Decode and update of a 1B Llama in bfloat16 on one accelerator, against what the machine can do.

Run: make bench-gpu    (python -m benchmarks.gpu --out runs/bench-gpu; --tiny tries it out on a CPU)

Decode: bytes that a step must read (weights, prompt K/V once per prompt, completion K/V so far) over its time, against the measured copy
bandwidth; at large batches a step is bound by arithmetic instead, so its share of the larger of both floors is printed beside it. A step's
time is the difference of two rollouts of different length, which takes prefill and launch out. Update: model FLOP (6 per weight and position,
attention included, recomputation not) over its time, against the measured rate of a square matrix product.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.shapes import Shape
from benchmarks.timing import measure, spread
from benchmarks.worker import versions
from benchmarks.workers.common import experiment, prompt_batch, recorded
from lgrpo.algos.policy_loss import policy_loss
from lgrpo.config import ExperimentConfig, ModelConfig
from lgrpo.keys import Stream, key_for
from lgrpo.latent.replay import replay_logps
from lgrpo.models.decoder import compute_params
from lgrpo.models.presets import LLAMA_3_2_1B
from lgrpo.models.spec import abstract_params, init_params
from lgrpo.train.steps.rl import rollout_step

DECODE_BAR, UPDATE_BAR = 0.6, 0.4
TINY = ModelConfig(
    vocab_size=512,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    d_ff=128,
    tie_embeddings=True,
    dtype="bfloat16",
    remat=True,
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the machine can do, measured."""

    bytes_per_s: float
    flop_per_s: float


def _seconds(work: Any, repeats: int) -> float:
    return spread(measure(lambda: jax.block_until_ready(work()), repeats)["seconds"])["median_s"]


def measure_limits(repeats: int, *, size: int, gigabytes: float) -> Limits:
    """Copy (read and write, in place) and bfloat16 matrix product, each many times inside one jit so that launches do not count."""
    count, loops = int(gigabytes * 1e9 / 4), 20
    state = {"x": jnp.zeros(count, jnp.float32)}

    @jax.jit
    def product(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, loops, lambda _, b: (a @ b) * jnp.bfloat16(size**-0.5), a)

    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def copies() -> jax.Array:
        for _ in range(loops):
            state["x"] = add(state["x"])
        return state["x"]

    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    return Limits(loops * 8 * count / _seconds(copies, repeats), loops * 2 * size**3 / _seconds(lambda: product(a), repeats))


def body_weights(cfg: ModelConfig) -> int:
    """Weights of the blocks: each costs 2 FLOP per position forward."""
    return sum(x.size for x in jax.tree.leaves(abstract_params(cfg)["blocks"]))


def decode_cost(cfg: ModelConfig, shape: Shape, context: float) -> tuple[float, float]:
    """(bytes, FLOP) of one decode step for shape.rows completions that are `context` positions into their completion."""
    wide = jnp.dtype(cfg.dtype).itemsize
    weights = body_weights(cfg) + cfg.vocab_size * cfg.d_model
    kv = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * (shape.prompts * shape.prompt_len + shape.rows * context)
    attention = 4 * cfg.n_layers * cfg.n_heads * cfg.head_dim * (shape.prompt_len + context)
    return wide * (weights + kv), shape.rows * (2 * weights + attention)


def update_flop(cfg: ModelConfig, shape: Shape) -> float:
    """Model FLOP of forward and backward: prompts once per group, the unembedding on completions only."""
    completion = shape.rows * shape.new
    positions = shape.prompts * shape.prompt_len + completion
    seen = shape.prompts * shape.prompt_len**2 / 2 + completion * (shape.prompt_len + shape.new / 2)
    attention = 4 * cfg.n_layers * cfg.n_heads * cfg.head_dim * seen
    return 3 * (2 * body_weights(cfg) * positions + 2 * cfg.vocab_size * cfg.d_model * completion + attention)


def decode(cfg: ExperimentConfig, shape: Shape, params: Any, limits: Limits, repeats: int) -> dict[str, float]:
    """Seconds of one decode step and what it reaches."""
    prompts, keys = jax.device_put(prompt_batch(shape)), iter(range(100_000))
    seconds, lengths = [], (shape.new // 2, shape.new)
    for length in lengths:
        at = dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, max_new_tokens=length))
        seconds.append(_seconds(lambda at=at: rollout_step(params, prompts, key_for(0, next(keys), Stream.ROLLOUT), cfg=at), repeats))
    step = max(seconds[1] - seconds[0], 1e-9) / (lengths[1] - lengths[0])
    # The shorter rollout's cache is shorter too; the difference stands for steps in the second half of the longer one.
    read, flop = decode_cost(cfg.model, shape, (lengths[0] + lengths[1]) / 2)
    floor = max(read / limits.bytes_per_s, flop / limits.flop_per_s)
    found = {"rollout_s": seconds[1], "step_s": step, "tokens_per_s": shape.tokens / seconds[1], "bytes_per_s": read / step}
    return found | {"share_of_copy": read / step / limits.bytes_per_s, "share_of_floor": floor / step}


def update(cfg: ExperimentConfig, shape: Shape, params: Any, limits: Limits, repeats: int) -> dict[str, float]:
    """Seconds of value_and_grad over the batch and what it reaches."""
    batch = jax.device_put((prompt_batch(shape), *recorded(shape)))

    def loss(params: Any, prompts: Any, rollout: Any, advantages: jax.Array) -> jax.Array:
        logps = replay_logps(params, prompts, rollout, cfg=cfg)
        flat = [x.reshape(-1, shape.new) for x in (logps, rollout.logps, advantages, rollout.loss_mask)]
        return policy_loss(*flat)[0].value()

    step = jax.jit(jax.value_and_grad(loss))
    seconds = _seconds(lambda: step(params, *batch), repeats)
    rate = update_flop(cfg.model, shape) / seconds
    return {"update_s": seconds, "flop_per_s": rate, "share_of_matrix": rate / limits.flop_per_s}


def peak_bytes() -> int | None:
    """Largest device memory in use so far; None where the backend does not count it."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def verdict(name: str, share: float, bar: float) -> str:
    """One line per bar."""
    return f"{name}: at least {bar:.0%}, measured {share:.1%}, {'met' if share >= bar else 'MISSED'}"


def run_batch(model: ModelConfig, shape: Shape, limits: Limits, repeats: int) -> dict[str, Any]:
    """Decode in every mode and update, at one batch size. Prints as it goes."""
    params = jax.jit(lambda: init_params(model, key_for(0, 0, Stream.INIT)))()
    weights = jax.jit(lambda p: compute_params(p, model))(params)
    found: dict[str, Any] = {"rows": shape.rows}
    for preset in ("explicit", "exact", "paper"):
        got = found[f"decode {preset}"] = decode(experiment(shape, preset, model=model), shape, weights, limits, repeats)
        print(
            f"batch {shape.rows}, decode {preset}: {got['step_s'] * 1e3:.2f} ms a step, {got['tokens_per_s']:,.0f} tokens/s, "
            f"{got['bytes_per_s'] / 1e9:,.1f} GB/s, {got['share_of_floor']:.1%} of the floor (larger of bytes and FLOP)"
        )
        print("  " + verdict("share of copy bandwidth", got["share_of_copy"], DECODE_BAR))
    del weights
    cfg = experiment(shape, "paper", model=model, diff={"rollout.latent.law.score_gradient": "plain"})
    got = found["update"] = update(cfg, shape, params, limits, repeats)
    print(f"batch {shape.rows}, update: {got['update_s']:.3f} s, {got['flop_per_s'] / 1e12:,.3f} TFLOP/s")
    print("  " + verdict("share of the matrix rate", got["share_of_matrix"], UPDATE_BAR))
    found["peak_bytes"] = peak_bytes()
    return found


def main(argv: list[str]) -> int:
    """Runs every batch size; writes results.json."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu"))
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024], help="completions, multiples of 8")
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--new", type=int, default=64, help="tokens per completion, at least 8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a toy model: checks that everything runs")
    args = parser.parse_args(argv)
    model = TINY if args.tiny else LLAMA_3_2_1B
    if args.tiny:
        args.batches, args.prompt_len, args.new = [16], 16, 8
    device = jax.local_devices()[0]
    limits = measure_limits(args.repeats, size=256 if args.tiny else 8192, gigabytes=0.01 if args.tiny else 2.0)
    print(
        f"{device.device_kind}: copy {limits.bytes_per_s / 1e9:,.1f} GB/s, bfloat16 matrix product {limits.flop_per_s / 1e12:,.3f} TFLOP/s"
    )
    results: dict[str, Any] = {"device": device.device_kind, "versions": versions(), "limits": dataclasses.asdict(limits), "batches": []}
    for rows in args.batches:
        shape = Shape(vocab=model.vocab_size, width=model.d_model, prompts=rows // 8, group=8, prompt_len=args.prompt_len, new=args.new)
        results["batches"].append(run_batch(model, shape, limits, args.repeats))
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
