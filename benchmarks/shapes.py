"""The model, weights and inputs that every runner of a workload shares. NumPy only: the peers' environments need nothing of lgrpo's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama and a batch: `prompts` prompts of `prompt_len` tokens, `group` completions of `new` tokens each."""

    vocab: int = 32000
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    ff: int = 688
    rms_eps: float = 1e-5
    rope_theta: float = 10000.0
    prompts: int = 32
    prompt_len: int = 64
    group: int = 8
    new: int = 64
    k: int = 10

    @property
    def rows(self) -> int:
        """Completions of a batch."""
        return self.prompts * self.group

    @property
    def tokens(self) -> int:
        """Generated positions of a batch."""
        return self.rows * self.new


def shape_of(args: dict[str, Any]) -> Shape:
    """Shape from the arguments of a worker; other keys are left alone."""
    names = {f.name for f in dataclasses.fields(Shape)}
    return Shape(**{name: value for name, value in args.items() if name in names})


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Any]:
    """Random float32 weights, normal with deviation 1 / sqrt(fan_in), in lgrpo's layout (blocks stacked by layer, matrices [in, out])."""
    rng = np.random.default_rng(seed)
    layers, width, head_dim = shape.layers, shape.width, shape.head_dim

    def normal(*size: int, fan_in: int) -> np.ndarray:
        return rng.standard_normal(size, np.float32) / np.float32(fan_in**0.5)

    blocks = {
        "attn_norm": np.ones((layers, width), np.float32),
        "wq": normal(layers, width, shape.heads, head_dim, fan_in=width),
        "wk": normal(layers, width, shape.kv_heads, head_dim, fan_in=width),
        "wv": normal(layers, width, shape.kv_heads, head_dim, fan_in=width),
        "wo": normal(layers, shape.heads, head_dim, width, fan_in=shape.heads * head_dim),
        "mlp_norm": np.ones((layers, width), np.float32),
        "w_gate": normal(layers, width, shape.ff, fan_in=width),
        "w_up": normal(layers, width, shape.ff, fan_in=width),
        "w_down": normal(layers, shape.ff, width, fan_in=shape.ff),
    }
    return {
        "embed": normal(shape.vocab, width, fan_in=width),
        "blocks": blocks,
        "final_norm": np.ones(width, np.float32),
        "unembed": normal(width, shape.vocab, fan_in=width),
    }


def prompt_tokens(shape: Shape, seed: int = 1) -> np.ndarray:
    """Random prompts without padding and without id 0, which stands for the beginning in some runners; int32 [B, P]."""
    return np.random.default_rng(seed).integers(1, shape.vocab, (shape.prompts, shape.prompt_len)).astype(np.int32)


def completions(shape: Shape, seed: int = 2) -> dict[str, np.ndarray]:
    """A recorded latent rollout, all of it latent: ids, weights [N,T,K] float32, scores [N,T,K], old log-probs and advantages [N,T].

    old_token_logps [N,T] are those of a rollout of plain tokens, the first ids. The K ids of a position differ. Scores, and these, lie near the
    log-probs that a flat random model gives, so that densities and ratios are moderate.
    """
    rng, size = np.random.default_rng(seed), (shape.rows, shape.new)
    first = rng.integers(0, shape.vocab, (*size, 1))
    ids = (first + np.cumsum(rng.integers(1, shape.vocab // shape.k, (*size, shape.k)), axis=-1)) % shape.vocab
    scores = (-np.log(shape.vocab) + rng.uniform(-0.5, 1.5, (*size, shape.k))).astype(np.float32)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    group = rng.standard_normal((shape.prompts, shape.group, 1)).astype(np.float32)
    advantages = np.broadcast_to(group, (shape.prompts, shape.group, shape.new)).reshape(size)
    return {
        "ids": ids.astype(np.int32),
        "weights": weights.astype(np.float32),
        "scores": scores,
        "old_logps": rng.normal(-1.9, 0.3, size).astype(np.float32),
        "old_token_logps": rng.normal(-np.log(shape.vocab), 0.3, size).astype(np.float32),
        "advantages": np.ascontiguousarray(advantages),
    }


def whole(shape: Shape, completed: Sequence[np.ndarray]) -> dict[str, int]:
    """What a runner says of its last batch. completed: the tokens of each completion. Errors: RuntimeError where it did less than the others, or more."""
    lengths = sorted({len(row) for row in completed})
    if len(completed) != shape.rows or lengths != [shape.new]:
        raise RuntimeError(
            f"{len(completed)} completions of {lengths} tokens, not {shape.rows} of {shape.new}: other work than the others'"
        )
    return {"tokens": shape.tokens, "distinct_ids": len(np.unique(np.stack(completed)))}


def random_logits(rows: int, vocab: int, seed: int = 3) -> np.ndarray:
    """Logits of one sampling step, 4 * normal, float32 [rows, vocab]."""
    return 4 * np.random.default_rng(seed).standard_normal((rows, vocab), np.float32)
