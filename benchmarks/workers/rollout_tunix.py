"""Rollout by google-tunix: its Sampler on its llama3 model, random weights of its own, top_p 1, top_k None. args: a Shape, repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import Llama3, ModelConfig

from benchmarks.shapes import Shape, prompt_tokens, shape_of, whole
from benchmarks.timing import Kept, measure


class NumberTokenizer:
    """Texts are ids with spaces between. Padding and the end of sequence lie beyond the vocabulary, so nothing is masked and nothing stops early."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # the sampler puts none in front when it is 0

    def eos_id(self) -> int:
        return self.vocab + 1

    def pad_id(self) -> int:
        return self.vocab


def _model(shape: Shape) -> Llama3:
    config = ModelConfig(
        num_layers=shape.layers,
        vocab_size=shape.vocab,
        embed_dim=shape.width,
        hidden_dim=shape.ff,
        num_heads=shape.heads,
        head_dim=shape.head_dim,
        num_kv_heads=shape.kv_heads,
        rope_theta=int(shape.rope_theta),
        norm_eps=shape.rms_eps,
    )
    return Llama3(config, rngs=nnx.Rngs(params=0))


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of whole rollouts; every prompt is given once per completion, as its users do for groups."""
    shape = shape_of(args)
    cache = CacheConfig(
        cache_size=shape.prompt_len + shape.new, num_layers=shape.layers, num_kv_heads=shape.kv_heads, head_dim=shape.head_dim
    )
    tokenizer = NumberTokenizer(shape.vocab)
    sampler = Sampler(_model(shape), tokenizer, cache)
    texts = [tokenizer.decode(row.tolist()) for row in prompt_tokens(shape).repeat(shape.group, axis=0)]
    settings = {"max_generation_steps": shape.new, "max_prompt_length": shape.prompt_len, "temperature": 1.0, "top_p": 1.0, "top_k": None}
    seeds = iter(range(10_000))

    def sample() -> Any:
        return sampler(texts, seed=next(seeds), **settings)  # returns host arrays

    work = Kept(sample)
    found = measure(work, args["repeats"])
    out = [np.asarray(row) for row in work.last.tokens]
    return found | whole(shape, out)
