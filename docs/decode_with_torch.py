"""Decodes an export of lgrpo, latents included: python decode_with_torch.py FOLDER "PROBLEM" [SEED]; with a SEED under the noise of training."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def latent_step(logits, c, noise):
    """Ids and weights [K] of the next mixture. logits [V]; c: latent_config.json; noise: standard Gumbel draws [V], or None for none."""
    law, k, clamped = c["law"], c["k"], "clamp" in c["law"]  # the law Exact has no clamp and no nucleus, and noise may end the thinking
    if noise is None or (clamped and law["end_rule"] == "argmax" and logits.argmax() == c["think_end_id"]):
        best = logits.topk(k)
        return best.indices, best.values.softmax(-1)
    logp = logits.log_softmax(-1)
    if clamped:
        noise = noise if law["clamp"] is None else noise.clamp(*law["clamp"])  # the one-sided shift changes neither ids nor weights
        mass, order = logp.exp().sort(descending=True)
        kept = max(k, int((mass.cumsum(-1) - mass < law["top_p"]).sum())) if law["order"] == "perturb_then_topk" else k
        noise = noise.index_fill(0, order[kept:], -torch.inf)
    best = (logp + c["noise_scale"] * noise).topk(k)
    return best.indices, (best.values / c["tau"]).softmax(-1)


@torch.no_grad()
def decode(model, ids, c, ends, limit=1024, noise=lambda step: None):
    """Mixtures [(ids [K], weights [K]), ...] and greedy answer ids. ids [1, P]: the prompt; ends: ids that end an answer; limit: steps in all."""
    table, end, thinking, latents, answer = model.get_input_embeddings().weight, c["think_end_id"], True, [], []
    out = model(input_ids=ids, use_cache=True)
    for step in range(limit):
        logits = out.logits[0, -1].float()
        if thinking:
            logits[end] = -torch.inf if step < c["min_latent"] else logits[end]
            chosen, weights = latent_step(logits, c, noise(step))
            thinking = bool(chosen[0] != end) and not 0 < c["max_latent"] <= step
            latents += [(chosen, weights)] if thinking else []
            fed = weights @ table[chosen].float() if thinking else table[end]
        else:
            answer.append(int(logits.argmax()))
            fed = table[answer[-1]]
        if answer and answer[-1] in ends:
            break
        out = model(inputs_embeds=fed.to(table.dtype)[None, None], past_key_values=out.past_key_values, use_cache=True)
    return latents, answer


if __name__ == "__main__":
    folder, problem, *seed = sys.argv[1:]
    c = json.loads(open(f"{folder}/latent_config.json").read())  # noqa: SIM115
    if c["law"]["class"] not in ("lgrpo.latent.laws.exact:Exact", "lgrpo.latent.laws.gumbel:Gumbel"):
        sys.exit(f"the law {c['law']['class']} is not decoded here: use lgrpo import-hf and lgrpo ask")
    model, words = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval(), AutoTokenizer.from_pretrained(folder)
    ids = words(c["prompt"].replace("{problem}", problem), add_special_tokens=False, return_tensors="pt").input_ids
    ends, random = model.config.eos_token_id, torch.Generator().manual_seed(int((seed or [0])[0]))
    gumbel = lambda _: -torch.empty(model.config.vocab_size).exponential_(generator=random).log() if seed else None  # noqa: E731
    latents, answer = decode(model, ids, c, ends if isinstance(ends, list) else [ends], noise=gumbel)
    for mixture in latents:
        print("  ".join(f"{words.convert_ids_to_tokens(int(i))}:{w:.2f}" for i, w in zip(*mixture, strict=True)))
    print(words.decode(answer))
