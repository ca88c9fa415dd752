"""What lgrpo's own workers share: configs from a Shape, batches, forced full-length completions."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from benchmarks.shapes import Shape, completions, prompt_tokens, random_weights
from lgrpo.config import DataConfig, ExperimentConfig, LatentConfig, ModelConfig, RolloutConfig, TrainConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.config.presets import EXACT, EXPLICIT, PAPER
from lgrpo.types import PromptBatch, Rollout

PRESETS = {"exact": EXACT, "paper": PAPER, "explicit": EXPLICIT}


def model_config(shape: Shape) -> ModelConfig:
    """The Llama of a Shape, float32."""
    return ModelConfig(
        vocab_size=shape.vocab,
        d_model=shape.width,
        n_layers=shape.layers,
        n_heads=shape.heads,
        n_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        d_ff=shape.ff,
        rope_theta=shape.rope_theta,
        rms_eps=shape.rms_eps,
    )


def experiment(shape: Shape, preset: str, *, model: ModelConfig | None = None, diff: dict[str, Any] | None = None) -> ExperimentConfig:
    """A preset at a Shape.

    No completion ends before its last token: the ids of </think> and of the end of sequence are the first number beyond the vocabulary, which
    no sampler can produce. So every runner generates exactly shape.new tokens a row, and nothing is added to lgrpo's work to forbid an end.
    """
    cfg = ExperimentConfig(
        name=f"bench_{preset}",
        model=model or model_config(shape),
        data=DataConfig(max_prompt=shape.prompt_len, think_end_id=shape.vocab, eos_id=shape.vocab),
        rollout=RolloutConfig(group_size=shape.group, max_new_tokens=shape.new, latent=LatentConfig(k=shape.k)),
        train=TrainConfig(prompts_per_step=shape.prompts),
    )
    return apply_diff(apply_diff(cfg, PRESETS[preset]), diff or {})


def params_of(shape: Shape) -> Any:
    """The shared random weights on the device."""
    return jax.tree.map(jax.numpy.asarray, random_weights(shape))


def prompt_batch(shape: Shape) -> PromptBatch:
    """Unpadded prompts, as host arrays."""
    tokens = prompt_tokens(shape)
    return PromptBatch(tokens, np.ones(tokens.shape, bool), np.arange(shape.prompts, dtype=np.int32))


def recorded(shape: Shape, *, tokens: bool = False) -> tuple[Rollout, np.ndarray]:
    """The shared recorded completions as a Rollout with leaves [B, G, ...], and advantages [B, G, T]. tokens: of a mixture only its first id."""
    data = completions(shape)

    def grouped(x: np.ndarray) -> np.ndarray:
        return x.reshape(shape.prompts, shape.group, *x.shape[1:])

    on = np.ones((shape.prompts, shape.group, shape.new), bool)
    ids, weights, scores, old = (grouped(data[name]) for name in ("ids", "weights", "scores", "old_logps"))
    if tokens:
        ids, old = ids[..., :1], grouped(data["old_token_logps"])
        weights, scores = np.ones(ids.shape, np.float32), np.zeros(ids.shape, np.float32)
    end = np.full(on.shape[:2], shape.new, np.int32)
    return Rollout(ids, scores, weights, on & (not tokens), on, on, old, end * 0, end, end < 0), grouped(data["advantages"])
