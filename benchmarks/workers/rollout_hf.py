"""Rollout by Hugging Face transformers: LlamaForCausalLM.generate. args: a Shape, cache (dynamic, static), repeats."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.shapes import Shape, prompt_tokens, random_weights, shape_of, whole
from benchmarks.timing import Kept, measure
from benchmarks.workers.torch_model import llama


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of whole rollouts at temperature 1 without truncation. There is no end of sequence, so exactly `new` tokens come."""
    shape: Shape = shape_of(args)
    model = llama(shape, random_weights(shape)).eval()
    ids = torch.from_numpy(prompt_tokens(shape)).long()
    settings = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_return_sequences": shape.group,
        "max_new_tokens": shape.new,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    if args["cache"] == "static":
        settings |= {"cache_implementation": "static", "disable_compile": True}
    mask = torch.ones_like(ids)

    def sample() -> torch.Tensor:
        with torch.inference_mode():
            return model.generate(ids, attention_mask=mask, **settings)

    work = Kept(sample)
    found = measure(work, args["repeats"])
    return found | whole(shape, work.last[:, shape.prompt_len :].numpy()) | {"threads": torch.get_num_threads()}
