"""Latent-SFT stage 1: an encoder that turns each chunk of a chain into a mixture of tokens, and a decoder that must read the chain from them.

Parameters: {"encoder": the model without its output projection, and the compress vector; "decoder": an ordinary model}. The encoder's hidden state
at a compress position, projected onto the decoder's embedding table, is the mixture that the decoder gets as a latent. Source: arXiv 2510.15522.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lgrpo.algos.latent_labels import EncoderSequence, decoder_sequence, encoder_sequence, project
from lgrpo.config import ExperimentConfig, ModelConfig
from lgrpo.latent.logprobs import chunked_logps
from lgrpo.latent.mixture import embed_mixture
from lgrpo.models.decoder import compute_params, forward
from lgrpo.models.spec import ParamSpec, param_specs
from lgrpo.types import Array, Mean, Params, masked_mean

STAGES = ("encoder", "decoder", "union")


def stage1_specs(cfg: ModelConfig) -> dict[str, Any]:
    """Spec tree of encoder and decoder. The compress vector is no row of the vocabulary, so the decoder remains an ordinary policy."""
    policy = param_specs(cfg)
    encoder = {name: spec for name, spec in policy.items() if name != "unembed"}
    return {"encoder": encoder | {"compress": ParamSpec((cfg.d_model,), ("norm",), "normal", "", cfg.d_model)}, "decoder": policy}


def encoder_from(policy: Params, compress: Array) -> Params:
    """An encoder that starts as a copy of a policy. compress [D]."""
    return {name: jax.tree.map(jnp.copy, sub) for name, sub in policy.items() if name != "unembed"} | {"compress": compress}


def compressed(batch: dict[str, Array], cfg: ExperimentConfig) -> EncoderSequence:
    """Encoder sequence of a supervised batch (data.pipeline.sft_stream)."""
    names = ("prompt_tokens", "prompt_mask", "chain_tokens", "chain_mask")
    return encoder_sequence(*(batch[n] for n in names), [cfg.data.think_end_id], compression=cfg.sft.compression)


def encode(params: Params, sequence: EncoderSequence, cfg: ExperimentConfig) -> tuple[jax.Array, jax.Array]:
    """One mixture per compress position. params: stage 1, in the type of the computation -> ids int32 [N,M,K], probs float32 [N,M,K].

    What stands where there is no latent (sequence.latents) has no meaning.
    """
    encoder = params["encoder"]
    embeds = jnp.where(sequence.is_compress[..., None], encoder["compress"], encoder["embed"][sequence.tokens])
    hidden = forward(encoder, cfg.model, embeds, sequence.positions, sequence.attend)
    hidden = jnp.take_along_axis(hidden, sequence.where[..., None], axis=1)
    rows, count, width = hidden.shape
    per_slice = max(1, min(count, cfg.train.logprob_chunk // rows))
    slices = -(-count // per_slice)
    hidden = jnp.pad(hidden, ((0, 0), (0, slices * per_slice - count), (0, 0))).reshape(rows, slices, per_slice, width)
    spec = {"k": cfg.rollout.latent.k, "temperature": cfg.sft.projection_temperature, "kind": cfg.sft.projection}

    @jax.checkpoint  # scores over the vocabulary exist for one slice at a time, in the backward pass too
    def one(part: jax.Array) -> tuple[jax.Array, jax.Array]:
        return project(part, params["decoder"]["embed"], banned_id=cfg.data.think_end_id, **spec)

    ids, probs = jax.lax.map(one, jnp.moveaxis(hidden, 1, 0))

    def whole(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(rows, slices * per_slice, -1)[:, :count]

    return whole(ids), whole(probs)


def decode_logps(params: Params, ids: Array, probs: Array, batch: dict[str, Array], cfg: ExperimentConfig) -> tuple[jax.Array, jax.Array]:
    """What the decoder gives to the text when it sees these latents. ids, probs [N,M,K].

    Returns log-probs float32 [N,S-1] of the decoder sequence's tokens 1..S-1, and the mask of those that the loss asks for.
    """
    decoder = params["decoder"]
    names = ("prompt_tokens", "prompt_mask", "chain_tokens", "chain_mask")
    end, answer = [cfg.data.think_end_id], (batch["answer_tokens"], batch["answer_mask"])
    sequence = decoder_sequence(*(batch[n] for n in names), end, *answer, compression=cfg.sft.compression)
    latents = embed_mixture(jax.lax.stop_gradient(decoder["embed"]), ids, probs)
    placed = jnp.take_along_axis(latents, sequence.slot[..., None], axis=1)
    embeds = jnp.where(sequence.is_latent[..., None], placed, decoder["embed"][sequence.tokens])
    hidden = forward(decoder, cfg.model, embeds, sequence.positions, sequence.attend)[:, :-1]
    targets, wanted = sequence.tokens[:, 1:], sequence.labelled[:, 1:]
    ones = jnp.ones(targets.shape, jnp.float32)
    return chunked_logps(decoder, hidden, targets[..., None], ones, chunk=cfg.train.logprob_chunk).chosen[..., 0], wanted


def label_count(batch: dict[str, Array], cfg: ExperimentConfig) -> jax.Array:
    """Number of tokens in the loss, from the batch alone: chunks after the first, end of thinking, answer."""
    later = jnp.arange(batch["chain_mask"].shape[1]) >= cfg.sft.compression
    return (batch["chain_mask"] & later).sum() + batch["answer_mask"].sum() + batch["answer_mask"].shape[0]


def stage1_terms(params: Params, batch: dict[str, Array], cfg: ExperimentConfig) -> Mean:
    """Cross-entropy on chunks, end of thinking and answer, nats, as sum and count. params: stage 1 (in the type they are stored in)."""
    params = compute_params(params, cfg.model)
    ids, probs = encode(params, compressed(batch, cfg), cfg)
    logps, wanted = decode_logps(params, ids, probs, batch, cfg)
    return masked_mean(-logps, wanted)
