"""Peak memory of a whole run of a model of 135M parameters: start, two steps, a save after each. args: kind (sft, rl), and layers for a smaller model.

On CPU the device's memory is that of the process. What is needed: interpreter and imports as measured before the run, parameters, moments, gradients,
and one batch: what the blocks of a slice keep for their backward pass, and the logits of one chunk, once.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax

from benchmarks.worker import peak_rss_bytes
from benchmarks.workers.update_flop import SMOLLM2
from experiments.demo import explicit_sft, latent_grpo
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.sharding import make_mesh
from lgrpo.train import rl, sft
from lgrpo.train.memory import checked
from lgrpo.train.optimizer import split
from lgrpo.train.setup import abstract_state

COLUMNS = ["run", "imports", "parameters", "moments", "gradients", "one batch", "needed", "peak", "times what is needed"]


def _config(kind: str, layers: int) -> ExperimentConfig:
    cfg = (explicit_sft if kind == "sft" else latent_grpo).get_config()
    sizes = {f"model.{f.name}": getattr(SMOLLM2, f.name) for f in dataclasses.fields(SMOLLM2)} | {"model.n_layers": layers}
    steps = {"train.num_steps": 2, "train.init_from": "", "checkpoint.every": 1, "evaluation.every": 0, "logging.progress": False}
    small = {"sft.batch_size": 8, "train.prompts_per_step": 4, "train.microbatch": 4 if kind == "sft" else 2, "rollout.group_size": 4}
    return apply_diff(cfg, sizes | steps | small | {"mesh.data": 1, "optim.warmup": 0, "algo.dynamic.enabled": False})


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _batch(cfg: ExperimentConfig, kind: str) -> int:
    """Bytes of results that a slice's blocks keep, float32, and of the logits of a chunk."""
    m, prompt = cfg.model, cfg.data.max_prompt
    rows, length = (
        (1, cfg.rollout.max_new_tokens * cfg.rollout.group_size) if kind == "rl" else (1, cfg.sft.max_chain + 1 + cfg.sft.max_answer)
    )
    rows *= cfg.train.microbatch
    kept = (
        4 * m.d_model + 2 * m.n_kv_heads * m.head_dim + 2 * m.d_ff
    )  # of a block: input, query, attention, result; keys and values; gate and up
    return 4 * (rows * (prompt + length) * kept * m.n_layers + min(cfg.train.logprob_chunk, rows * length) * m.vocab_size)


def run(args: dict[str, Any]) -> dict[str, Any]:
    """One row of the table, in MiB."""
    kind, imports = args["kind"], peak_rss_bytes()
    cfg = _config(kind, args.get("layers", SMOLLM2.n_layers))
    known = checked(cfg, jax.devices()[:1], rl=kind == "rl")
    state = abstract_state(known, make_mesh(known.mesh, jax.devices()[:1]), rl=kind == "rl")
    needed = [imports, _bytes(state.params), _bytes(state.opt_state), _bytes(split(state.params, known.optim)[0]), _batch(known, kind)]
    with tempfile.TemporaryDirectory() as folder:
        code = (rl if kind == "rl" else sft).run(cfg, Path(folder) / "run")
    peak = peak_rss_bytes()
    if code:
        raise RuntimeError(f"the run ended with code {code}")
    row = [kind, *(f"{x / 2**20:,.0f}" for x in (*needed, sum(needed), peak)), f"{peak / sum(needed):.2f}"]
    return {"columns": COLUMNS, "rows": [row]}
