"""Writes tests/golden/hf_*: tiny random models as transformers saves them, and the logits that transformers computes for them.

Needs torch and transformers (requirements-parity.txt); the committed files let the ordinary tests do without.
Run: python tests/golden/make_hf_golden.py
"""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
VOCAB = 96
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8, "intermediate_size": 48, "vocab_size": VOCAB}
CASES = {
    "hf_llama": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 10000.0, "rope_scaling": LLAMA3}),
    "hf_qwen2": ("Qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": False, "rope_theta": 1000000.0}),
}


def build(family: str, extra: dict, seed: int = 0) -> torch.nn.Module:
    """A random model with norms and biases away from ones and zeros, so that a forgotten one is seen."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **extra, max_position_embeddings=256, attn_implementation="eager")
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                value.add_(0.3 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) / value.shape[-1] ** 0.5)
    return model


def inputs(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [3, 24] and a mask with left padding of 0, 5 and 11."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, (3, 24)))
    mask = torch.arange(24)[None] >= torch.tensor([0, 5, 11])[:, None]
    return ids, mask


def main() -> None:
    """Writes everything anew."""
    for name, (family, extra) in CASES.items():
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model = build(family, extra)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config["eos_token_id"] = 1
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        ids, mask = inputs()
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits
        np.savez_compressed(folder / "golden.npz", ids=ids.numpy().astype(np.int32), mask=mask.numpy(), logits=logits.numpy())
        print(folder, sum(p.stat().st_size for p in folder.iterdir()), "bytes")


if __name__ == "__main__":
    main()
