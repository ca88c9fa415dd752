"""Update by torch: value and gradient, no optimizer. args: a Shape, frozen (both tables), repeats, chunk.

Without chunk the logits of the whole completion exist, as in the authors' trainer. With it the loss is fused with the last product, as Liger's
Triton kernels do it on a GPU: of so many positions at a time logits are formed once, and their gradient at once, in the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.shapes import Shape, completions, prompt_tokens, random_weights, shape_of
from benchmarks.timing import Kept, measure
from benchmarks.workers.torch_model import llama

Positions = tuple[torch.Tensor, ...]  # ids and scores [M, K], old log-probs and advantages [M]


def policy_loss(logps: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """The clipped loss with dual clip 3, position by position."""
    ratio = torch.exp(torch.clamp(logps - old, -20.0, 20.0))
    worst = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.2))
    return torch.where(advantages < 0, torch.minimum(worst, -3.0 * advantages), worst)


def positions_loss(logits: torch.Tensor, at: Positions) -> torch.Tensor:
    """Loss of each position from its logits [M, V]."""
    ids, scores, old, advantages = at
    margin = scores - torch.log_softmax(logits, dim=-1).gather(-1, ids)
    return policy_loss((-margin - torch.exp(-margin)).mean(-1), old, advantages)


class Fused(torch.autograd.Function):
    """Mean loss of hidden [M, D] under table [V, D]. Its gradient is there when the forward pass ends."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, table: torch.Tensor, at: Positions, chunk: int) -> torch.Tensor:
        trained = ctx.needs_input_grad[1]
        total, parts, of_table = torch.zeros(()), [], torch.zeros_like(table) if trained else None
        for start in range(0, len(hidden), chunk):
            own = slice(start, start + chunk)
            logits = (hidden[own] @ table.T).requires_grad_()
            with torch.enable_grad():
                value = positions_loss(logits, tuple(x[own] for x in at)).sum() / len(hidden)
            (grad,) = torch.autograd.grad(value, logits)
            total += value.detach()
            parts.append(grad @ table)
            if trained:
                of_table.addmm_(grad.T, hidden[own])
        ctx.save_for_backward(torch.cat(parts), of_table)
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[Any, ...]:
        of_hidden, of_table = ctx.saved_tensors
        return of_hidden * scale, None if of_table is None else of_table * scale, None, None


def loss_of(model: Any, prompts: torch.Tensor, data: dict[str, torch.Tensor], shape: Shape, chunk: int) -> torch.Tensor:
    """Prompts are repeated for every completion; the completion's inputs are mixtures of embeddings."""
    table = model.model.embed_tokens.weight
    mixtures = sum(data["weights"][:, :-1, k, None] * table[data["ids"][:, :-1, k]] for k in range(shape.k))
    embeds = torch.cat([table[prompts.repeat_interleave(shape.group, 0)], mixtures], dim=1)
    at = tuple(data[name].flatten(0, 1) for name in ("ids", "scores", "old_logps", "advantages"))
    if not chunk:
        logits = model(inputs_embeds=embeds, use_cache=False, logits_to_keep=shape.new).logits
        return positions_loss(logits.flatten(0, 1), at).mean()
    hidden = model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -shape.new :]
    return Fused.apply(hidden.flatten(0, 1), model.lm_head.weight, at, chunk)


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
        value = loss_of(model, prompts, data, shape, args.get("chunk", 0))
        value.backward()
        return value.detach()

    work = Kept(update)
    found = measure(work, args["repeats"])
    norm = torch.sqrt(sum((p.grad.float() ** 2).sum() for p in model.parameters() if p.grad is not None))
    return found | {"tokens": shape.tokens, "loss": float(work.last), "grad_norm": float(norm), "threads": torch.get_num_threads()}
