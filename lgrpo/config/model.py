"""Settings of the decoder: the `model` part of the settings; import them from lgrpo.config."""

from __future__ import annotations

import dataclasses
from typing import Literal

from lgrpo.bounds import Count, Natural, NonNegative, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3 rotary scaling (the `rope_scaling` block of a Hugging Face config.json)."""

    factor: float = 32.0
    """Wavelengths longer than the original context are stretched by this factor."""
    low_freq_factor: float = 1.0
    """Wavelengths above original_max_position / low_freq_factor are fully scaled."""
    high_freq_factor: float = 4.0
    """Wavelengths below original_max_position / high_freq_factor are left alone."""
    original_max_position: int = 8192
    """Context length, in tokens, of the model before scaling."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama-, Qwen2- or Qwen3-style decoder."""

    family: Literal["llama", "qwen2", "qwen3"] = "llama"
    """qwen2 adds biases to the query, key and value projections; qwen3 has none, and norms of each query and key head."""
    vocab_size: Natural = 0
    """Rows of the embedding table. 0: taken from the tokenizer, once, before anything is built."""
    d_model: Count = 64
    """Width D."""
    n_layers: Count = 2
    """Number of decoder blocks L."""
    n_heads: Count = 4
    """Query heads H."""
    n_kv_heads: Count = 2
    """Key/value heads Kv; divides n_heads."""
    head_dim: Count = 16
    """Width of a head, Dh."""
    d_ff: Count = 192
    """Width F of the gated feed-forward layer."""
    rope_theta: Positive = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Llama-3 scaling, or None."""
    rms_eps: Positive = 1e-5
    """Epsilon of the RMS norms."""
    tie_embeddings: bool = False
    """Use the embedding table as output projection."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Type of activations (logits, softmaxes and densities are always float32). auto: the one in which the machine multiplies faster; a run keeps
    what it began with."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the trained weights."""
    remat: bool = False
    """Recompute each block in the backward pass; False: keep the results of its matrix products and recompute only the rest."""
    attention: Literal["auto", "plain", "cudnn", "splash"] = "auto"
    """Attention of training and prefill. auto: for rows of 1024 positions or more splash on TPU and cudnn on GPU in bfloat16, else plain,
    which holds all scores of a layer."""
    init_scale: NonNegative = 1.0
    """Multiplies the standard deviation of the random initial weights."""
