"""The shared model as a transformers LlamaForCausalLM with the shared weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.shapes import Shape


def _state(shape: Shape, weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Hugging Face names; its matrices are [out, in]."""
    blocks, width = weights["blocks"], shape.width
    names = {
        "input_layernorm": blocks["attn_norm"],
        "self_attn.q_proj": blocks["wq"].reshape(shape.layers, width, -1),
        "self_attn.k_proj": blocks["wk"].reshape(shape.layers, width, -1),
        "self_attn.v_proj": blocks["wv"].reshape(shape.layers, width, -1),
        "self_attn.o_proj": blocks["wo"].reshape(shape.layers, -1, width),
        "post_attention_layernorm": blocks["mlp_norm"],
        "mlp.gate_proj": blocks["w_gate"],
        "mlp.up_proj": blocks["w_up"],
        "mlp.down_proj": blocks["w_down"],
    }
    state = {
        "model.embed_tokens.weight": weights["embed"],
        "model.norm.weight": weights["final_norm"],
        "lm_head.weight": weights["unembed"].T,
    }
    for name, stacked in names.items():
        for layer in range(shape.layers):
            state[f"model.layers.{layer}.{name}.weight"] = stacked[layer].T
    return {name: torch.tensor(x.copy()) for name, x in state.items()}


def llama(shape: Shape, weights: dict[str, Any]) -> LlamaForCausalLM:
    """float32, torch's scaled dot product attention."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.rms_eps,
        rope_theta=shape.rope_theta,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(_state(shape, weights))
    return model
