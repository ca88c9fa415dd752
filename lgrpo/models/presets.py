"""Model shapes by name. The large ones are checked with eval_shape only; their weights come with import-hf (a later issue)."""

from __future__ import annotations

from lgrpo.config import ModelConfig, RopeScaling


def tiny(**changes: int | float | str | bool) -> ModelConfig:
    """About 0.1 M parameters, for the embedded task and the tests."""
    return ModelConfig(**changes)  # type: ignore[arg-type]


LLAMA_3_2_1B = ModelConfig(
    family="llama",
    vocab_size=128256,
    d_model=2048,
    n_layers=16,
    n_heads=32,
    n_kv_heads=8,
    head_dim=64,
    d_ff=8192,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192),
    rms_eps=1e-5,
    tie_embeddings=True,
    dtype="bfloat16",
    remat=True,
)
QWEN2_5_MATH_7B = ModelConfig(
    family="qwen2",
    vocab_size=152064,
    d_model=3584,
    n_layers=28,
    n_heads=28,
    n_kv_heads=4,
    head_dim=128,
    d_ff=18944,
    rope_theta=10000.0,
    rms_eps=1e-6,
    dtype="bfloat16",
    remat=True,
)
QWEN2_5_0_5B = ModelConfig(
    family="qwen2",
    vocab_size=151936,
    d_model=896,
    n_layers=24,
    n_heads=14,
    n_kv_heads=2,
    head_dim=64,
    d_ff=4864,
    rope_theta=1000000.0,
    rms_eps=1e-6,
    tie_embeddings=True,
    dtype="bfloat16",
    remat=True,
)
