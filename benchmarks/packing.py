"""Records a second of supervised updates, padded and packed. Run: python -m benchmarks.packing --data DIR --tokenizer DIR [--layers 4]

GSM8K from DIR/gsm8k_train.jsonl, a model of SmolLM2-135M's sizes with so many layers and random weights. Padded and packed updates of the same
records take turns in one process, of explicit chains and of latents of two tokens each.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.report import markdown
from benchmarks.timing import alternate, spread
from benchmarks.workers.update_flop import SMOLLM2
from lgrpo.config import DataConfig, ExperimentConfig, OptimConfig, RolloutConfig, SftConfig, TrainConfig
from lgrpo.config.model import ModelConfig
from lgrpo.data import prompts
from lgrpo.data.pipeline import sft_stream
from lgrpo.sharding import make_mesh, put_batch
from lgrpo.train.setup import fresh_state
from lgrpo.train.steps.sft import sft_step


def _config(args: argparse.Namespace, stage: str, packing: bool) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(**dataclasses.asdict(SMOLLM2) | {"n_layers": args.layers, "vocab_size": args.vocab}),
        data=DataConfig(source="gsm8k", path=args.data, tokenizer=args.tokenizer, eos=args.eos, max_prompt=128),
        rollout=RolloutConfig(mode="latent" if stage == "latent" else "explicit", max_new_tokens=128),
        sft=SftConfig(stage=stage, compression=2, max_chain=96, max_answer=12, batch_size=args.batch, packing=packing),
        optim=OptimConfig(warmup=0),
        train=TrainConfig(num_steps=100, microbatch=args.batch // 2),
    )


def _updates(cfg: ExperimentConfig, mesh: Any, filled: list[float]) -> Callable[[], None]:
    """One update a call, each of the next batch. filled: gets the share of the positions of each packed one that hold something."""
    tokenizer = prompts.load_tokenizer(cfg.data)
    cfg = prompts.resolve(cfg, tokenizer)
    batches: Iterator[dict[str, np.ndarray]] = iter(sft_stream(cfg, tokenizer, "train", batch=cfg.sft.batch_size))
    state = [fresh_state(cfg, mesh, rl=False)]

    def work() -> None:
        batch = next(batches)
        if cfg.sft.packing:
            filled.append(float(np.mean(batch["pack_inputs"] >= 0)))
        state[0], update = sft_step(state[0], put_batch(batch, mesh), cfg=cfg)
        jax.block_until_ready(update)

    return work


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of gsm8k_train.jsonl")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--eos", default="<|im_end|>")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=49280, help="of the model; at least the tokenizer's")
    parser.add_argument("--batch", type=int, default=32, help="records, in two slices")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = []
    mesh = make_mesh(ExperimentConfig().mesh)
    with jax.set_mesh(mesh):
        for stage in ("explicit", "latent"):
            filled: list[float] = []
            works = {name: _updates(_config(args, stage, name == "packed"), mesh, filled) for name in ("padded", "packed")}
            found = alternate(works, args.repeats)
            medians = {
                (name, what): spread(found[name][what])["median_s"] for name, what in itertools.product(works, ("seconds", "cpu_seconds"))
            }
            for name in works:
                low, high = spread(found[name]["seconds"])["quartiles_s"]
                gain = [f"{medians['padded', what] / medians[name, what]:.2f}" for what in ("seconds", "cpu_seconds")]
                rate = args.batch / medians[name, "seconds"]
                rows.append([f"{stage}, {name}", f"{medians[name, 'seconds']:.2f} ({low:.2f} - {high:.2f})", f"{rate:.2f}", *gain])
            print(f"{stage}: {np.mean(filled):.1%} of the packed positions are filled")
    print(markdown(["updates", "s, median (quartiles)", "records a second", "times padded", "in CPU seconds"], rows))


if __name__ == "__main__":
    main()
