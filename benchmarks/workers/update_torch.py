"""Update by torch with full logits of the completion, as the authors' trainer does it: value and gradient, no optimizer. args: a Shape,
frozen (both tables), repeats."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.shapes import Shape, completions, prompt_tokens, random_weights, shape_of
from benchmarks.timing import Kept, measure
from benchmarks.workers.torch_model import llama


def policy_loss(logps: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Token mean of the clipped loss with dual clip 3."""
    ratio = torch.exp(torch.clamp(logps - old, -20.0, 20.0))
    worst = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.2))
    return torch.where(advantages < 0, torch.minimum(worst, -3.0 * advantages), worst).mean()


def loss_of(model: Any, prompts: torch.Tensor, data: dict[str, torch.Tensor], shape: Shape) -> torch.Tensor:
    """Prompts are repeated for every completion; the completion's inputs are mixtures of embeddings; every completion logit exists."""
    table = model.model.embed_tokens.weight
    mixtures = sum(data["weights"][:, :-1, k, None] * table[data["ids"][:, :-1, k]] for k in range(shape.k))
    embeds = torch.cat([table[prompts.repeat_interleave(shape.group, 0)], mixtures], dim=1)
    logits = model(inputs_embeds=embeds, use_cache=False, logits_to_keep=shape.new).logits
    margin = data["scores"] - torch.log_softmax(logits, dim=-1).gather(-1, data["ids"])
    return policy_loss((-margin - torch.exp(-margin)).mean(-1), data["old_logps"], data["advantages"])


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of forward and backward over the whole batch."""
    shape = shape_of(args)
    model = llama(shape, random_weights(shape)).train()
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.requires_grad_(not args.get("frozen", False))
    prompts = torch.from_numpy(prompt_tokens(shape)).long()
    data = {name: torch.from_numpy(x.copy()) for name, x in completions(shape).items()}
    data["ids"] = data["ids"].long()

    def update() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        value = loss_of(model, prompts, data, shape)
        value.backward()
        return value.detach()

    work = Kept(update)
    found = measure(work, args["repeats"])
    norm = torch.sqrt(sum((p.grad.float() ** 2).sum() for p in model.parameters() if p.grad is not None))
    return found | {"tokens": shape.tokens, "loss": float(work.last), "grad_norm": float(norm), "threads": torch.get_num_threads()}
