"""Update by TRL: the loss of its GRPOTrainer and its gradient, no optimizer, on completions of plain tokens. args: a Shape, repeats.

Its loss takes log-probs by vocabulary tiles, formed again in the backward pass, and the entropy of every token beside them.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from benchmarks.shapes import Shape, completions, prompt_tokens, random_weights, shape_of
from benchmarks.timing import Kept, measure
from benchmarks.workers.torch_model import llama


def _trainer(shape: Shape, folder: str) -> GRPOTrainer:
    """Its settings are those of workload B: clip 0.2, dual clip 3, no reference model, mean over tokens. The text and the reward are never used."""
    names = ("[PAD]", "[EOS]", "text")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="text")),
        pad_token="[PAD]",
        eos_token="[EOS]",
    )
    settings = GRPOConfig(
        folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        loss_type="bnpo",
        epsilon=0.2,
        delta=3.0,
        beta=0.0,
        temperature=1.0,
        num_generations=shape.group,
        per_device_train_batch_size=shape.rows,
        max_completion_length=shape.new,
        report_to="none",
    )
    return GRPOTrainer(
        llama(shape, random_weights(shape)).train(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["text"]}),
        processing_class=tokenizer,
    )


def _inputs(shape: Shape) -> dict[str, torch.Tensor]:
    """A batch as its rollouts leave one: prompts repeated for every completion, no padding."""
    data = completions(shape)
    prompts = torch.from_numpy(prompt_tokens(shape)).long().repeat_interleave(shape.group, 0)
    answers = torch.from_numpy(data["ids"][..., 0].copy()).long()
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": answers,
        "completion_mask": torch.ones_like(answers),
        "advantages": torch.from_numpy(data["advantages"]),
        "old_per_token_logps": torch.from_numpy(data["old_token_logps"]),
    }


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of forward and backward over the whole batch."""
    shape = shape_of(args)
    with tempfile.TemporaryDirectory() as folder:
        trainer, inputs = _trainer(shape, folder), _inputs(shape)
        trainer.current_gradient_accumulation_steps = 1  # set by its loop, which is not run

        def update() -> torch.Tensor:
            trainer.model.zero_grad(set_to_none=True)
            value = trainer.compute_loss(trainer.model, inputs)
            value.backward()
            return value.detach()

        work = Kept(update)
        found = measure(work, args["repeats"])
        norm = torch.sqrt(sum((p.grad.float() ** 2).sum() for p in trainer.model.parameters() if p.grad is not None))
    return found | {"tokens": shape.tokens, "loss": float(work.last), "grad_norm": float(norm), "threads": torch.get_num_threads()}
