"""One latent step in torch, the operations in the order of the authors' sampler. args: rows, vocab, k, repeats."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.shapes import random_logits
from benchmarks.timing import measure


def latent_step(
    logits: torch.Tensor, k: int, *, top_p: float = 0.95, low: float = -1.5, high: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nucleus by a full sort, noise for the whole vocabulary, clamped and shifted; the K best and their weights."""
    logps = torch.log_softmax(logits, dim=-1)
    ordered, order = torch.sort(logps, dim=-1, descending=True)
    probs = ordered.exp()
    drop = torch.cumsum(probs, dim=-1) - probs >= top_p
    drop[:, :k] = False
    outside = torch.zeros_like(drop).scatter(-1, order, drop)
    uniform = torch.rand_like(logps).clamp_(1e-20, 1.0)
    noise = (-torch.log(-torch.log(uniform))).clamp(low, high) - low
    scores, ids = torch.topk((logps + noise).masked_fill(outside, float("-inf")), k, dim=-1)
    return ids, torch.softmax(scores, dim=-1)


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one step for all rows."""
    logits = torch.from_numpy(random_logits(args["rows"], args["vocab"]))

    def work() -> Any:
        with torch.inference_mode():
            return latent_step(logits, args["k"])

    return measure(work, args["repeats"]) | {"threads": torch.get_num_threads()}
