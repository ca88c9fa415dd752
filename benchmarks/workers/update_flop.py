"""What forming the vocabulary's logits once would save: operations of an update, counted in its traced program. Nothing is computed. args: none.

Trainable tables take four products of [positions, D] and [D, V]: logits, logits again in the backward pass, and the gradients of the hidden states and
of the table. A loss whose cotangents are known where the logits are formed would do with three. Frozen tables take two and form logits once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from benchmarks.shapes import Shape
from benchmarks.workers.common import experiment, model_config
from lgrpo.config import MeshConfig, ModelConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.models.presets import LLAMA_3_2_1B
from lgrpo.sharding import make_mesh
from lgrpo.train.compute import count
from lgrpo.train.memory import abstract_batch, abstract_records
from lgrpo.train.setup import abstract_state
from lgrpo.train.steps.rl import train_step
from lgrpo.train.steps.sft import sft_step

SMOLLM2 = ModelConfig(
    vocab_size=49152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536, rope_theta=100000.0, tie_embeddings=True
)
MODELS = {"B": model_config(Shape()), "SmolLM2-135M": SMOLLM2, "Llama-3.2-1B": LLAMA_3_2_1B}
COLUMNS = ["model", "update", "recomputed blocks", "TFLOP", "products of the vocabulary", "their share", "saved by one product less"]


def _flop(model: ModelConfig, *, rl: bool, frozen: bool) -> float:
    """Of an update of 32 x 8 completions (RL) or 32 records (supervised), 64 + 64 tokens each."""
    cfg = experiment(Shape(), "exact", model=model, diff={"optim.freeze_embed": frozen, "optim.freeze_unembed": frozen})
    cfg = apply_diff(cfg, {"sft.batch_size": 32, "sft.max_chain": 56, "sft.max_answer": 7, "sft.packing": False, "mesh.data": 1})
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = abstract_state(cfg, mesh, rl=rl)
        program, batch = (train_step, abstract_batch(cfg, mesh)) if rl else (sft_step, abstract_records(cfg))
        return count(program.trace(state, batch, cfg=cfg).jaxpr.jaxpr).fixed


def _row(name: str, model: ModelConfig, *, rl: bool, frozen: bool) -> list[str]:
    total = _flop(model, rl=rl, frozen=frozen)
    half = _flop(dataclasses.replace(model, vocab_size=model.vocab_size // 2), rl=rl, frozen=frozen)
    completions, vocabulary = (32 * 8 if rl else 32) * 64, 2 * (total - half)
    one = 2.0 * completions * model.d_model * model.vocab_size
    kind = f"{'RL' if rl else 'supervised'}, {'frozen' if frozen else 'trained'} tables"
    saved = "-" if frozen else f"{one / total:.1%}"
    return [
        name,
        kind,
        "yes" if model.remat else "no",
        f"{total / 1e12:.2f}",
        f"{vocabulary / one:.2f}",
        f"{vocabulary / total:.0%}",
        saved,
    ]


def run(args: dict[str, Any]) -> dict[str, Any]:
    """A table by model, kind of update and recomputation."""
    rows = []
    for name, model in MODELS.items():
        for remat in (False, True):
            at = dataclasses.replace(model, remat=remat)
            rows += [_row(name, at, rl=rl, frozen=frozen) for rl, frozen in ((False, False), (True, False), (True, True))]
    return {"columns": COLUMNS, "rows": rows}
