"""The job that selftest kills: a tiny run of the real RL loop that says on stderr what it is about to do.

python -m lgrpo.selftest.job WORKDIR --data-dir DIR [--steps N] [--seed S] [--fsdp N] [--tensor N]. Once finished it writes WORKDIR/final.json, a
hash of every array of the final state and of the buffer, and the position in the data. In a bucket the record follows all the time, event files too,
so that kills meet that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lgrpo.cli.common import ended
from lgrpo.config import (
    AlgoConfig,
    CheckpointConfig,
    DataConfig,
    DynamicSamplingConfig,
    EvaluationConfig,
    ExperimentConfig,
    LatentConfig,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    TrainConfig,
)
from lgrpo.runs import multihost, output, partners, storage
from lgrpo.runs.checkpoint import Checkpoints
from lgrpo.runs.writers import mirror
from lgrpo.selftest.same import FINAL
from lgrpo.train import collect, health, rl
from lgrpo.train.setup import open_session

MARK = "selftest:"
"""Begins the lines on stderr that announce a phase."""


def config(options: argparse.Namespace) -> ExperimentConfig:
    """Small enough that starting takes longer than running; dynamic sampling and evaluations on."""
    ways = jax.device_count() // options.tensor
    rows = ways * -(-8 // ways)
    heads = max(2, options.tensor)
    return ExperimentConfig(
        name="selftest",
        seed=options.seed,
        model=ModelConfig(d_model=16, n_layers=1, n_heads=heads, n_kv_heads=options.tensor, head_dim=8, d_ff=8 * heads),
        data=DataConfig(difficulty="mini", data_dir=options.data_dir, max_prompt=32),
        rollout=RolloutConfig(group_size=4, max_new_tokens=6, latent=LatentConfig(k=4, max_latent=1)),
        algo=AlgoConfig(invalid="keep", dynamic=DynamicSamplingConfig(enabled=True, max_rounds=3)),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(num_steps=options.steps, prompts_per_step=rows),
        checkpoint=CheckpointConfig(every=2),
        evaluation=EvaluationConfig(every=3, problems=rows, batch=rows, samples=1, bootstrap=10),
        logging=LoggingConfig(tensorboard=storage.remote(options.workdir), progress=False),
        mesh=MeshConfig(data=-1, fsdp=options.fsdp, tensor=options.tensor),
    )


def announce(phase: str) -> None:
    """One line, at once, from the main process."""
    if multihost.is_main():
        print(MARK, phase, file=sys.stderr, flush=True)


def _announced(owner: Any, name: str, phase: Callable[[], str]) -> None:
    honest = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        announce(phase())
        return honest(*args, **kwargs)

    if hasattr(honest, "trace"):
        wrapped.trace = honest.trace  # a program: its cost is counted
    setattr(owner, name, wrapped)


def instrument() -> None:
    """Announcements, and rewards by luck: an untrained model never scores, so that no group would have spread and nothing would be learned."""
    generations = [0]

    def sampling() -> str:
        generations[0] += 1
        return "rollout" if generations[0] == 1 else "refill"

    def learning() -> str:
        generations[0] = 0
        return "update"

    _announced(rl, "open_session", lambda: "restore")
    _announced(rl, "rollout_step", sampling)
    _announced(rl, "train_step", learning)
    _announced(health, "evaluate", lambda: "evaluation")
    _announced(Checkpoints, "save", lambda: "save")
    honest = rl.score

    def lucky(rollout: Any, *args: Any) -> Any:
        scored = honest(rollout, *args)
        luck = np.asarray(rollout.tokens)[:, 2] % 2 == 0
        return scored.replace(rewards=luck.astype(np.float32), valid=np.ones_like(luck))

    rl.score = lucky


def _digests(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    leaves = [(path, multihost.host(leaf)) for path, leaf in leaves]
    return {jax.tree_util.keystr(path): hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest() for path, leaf in leaves}


def write_final(cfg: ExperimentConfig, workdir: storage.Place) -> None:
    """What must be equal bit for bit, read from the checkpoint of the last step."""
    session = open_session(cfg, workdir, rl=True, buffer=collect.placed_buffer)
    session.close()
    if session.restored is None or session.start != cfg.train.num_steps:
        raise RuntimeError(f"the newest checkpoint is that of step {session.start}, not of the last step")
    final = {"state": _digests(session.state), "buffer": _digests(session.restored.buffer), "data": session.restored.data}
    if not multihost.is_main():
        return
    storage.write_text(workdir / FINAL, json.dumps(final, indent=1, sort_keys=True))


def main() -> int:
    """Exit code of the run."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("workdir", type=storage.place)
    parser.add_argument("--data-dir", required=True)
    for name, default in (("--steps", 12), ("--seed", 0), ("--fsdp", 1), ("--tensor", 1)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    multihost.initialize()
    partners.GONE = 20.0  # of the kills of one process only the first part is waiting
    mirror.INTERVAL = 0.2
    cfg = config(options)
    instrument()
    code = rl.run(cfg, options.workdir)
    if code == 0:
        write_final(cfg, options.workdir)
    return code


if __name__ == "__main__":
    with output.protected():
        code = ended(main)
    sys.exit(code)
