"""Supervised batches in packed rows (data.packing): the same positions as in padded ones, each once, and none that is padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lgrpo.algos.latent_sft import SftTargets
from lgrpo.config import ModelConfig
from lgrpo.latent.mixture import embed_mixture
from lgrpo.models.decoder import forward_packed
from lgrpo.types import Array, Params, PromptBatch


@struct.dataclass
class PackedRows:
    """Rows of several records. R rows, W positions, Q completion steps."""

    ids: Array  # int32 [R,W,K]
    weights: Array  # float32 [R,W,K]; one-hot where a token stands
    record: Array  # int32 [R,W]; number of the record, -1 where nothing stands
    positions: Array  # int32 [R,W]; counted from each record's first token
    steps: Array  # int32 [R,Q]; places that predict
    targets: SftTargets  # leaves [R,Q,...]; what they predict


def pack_rows(prompts: PromptBatch, targets: SftTargets, inputs: Array, steps: Array) -> PackedRows:
    """Lays a padded batch into rows. prompts [N,P], targets [N,T,...], inputs int32 [R,W] and steps [R,Q] as made by data.packing.packed."""
    (rows, k), start = (targets.ids.shape[0], targets.ids.shape[-1]), prompts.tokens.shape[1]
    padded = start + targets.mask.shape[1]
    tokens = jnp.pad(prompts.tokens[..., None], ((0, 0), (0, 0), (0, k - 1)))
    one_hot = jnp.zeros(tokens.shape, jnp.float32).at[..., 0].set(1.0)

    def flat(prompt: Array, completion: Array) -> jax.Array:
        return jnp.concatenate([prompt, completion], axis=1).reshape(rows * padded, *completion.shape[2:])

    nothing = jnp.zeros(prompts.mask.shape, bool)
    whole = SftTargets(
        ids=flat(tokens, targets.ids),
        weights=flat(one_hot, targets.weights),
        is_latent=flat(nothing, targets.is_latent),
        mask=flat(nothing, targets.mask),
    )
    real, at = inputs >= 0, jnp.maximum(inputs, 0)
    first = start - jnp.asarray(prompts.mask).sum(-1, dtype=jnp.int32)
    asked, places = steps >= 0, jnp.maximum(steps, 0)
    predicted = jax.tree.map(lambda x: x[jnp.take_along_axis(at, places, axis=1) + 1], whole)
    return PackedRows(
        ids=jnp.where(real[..., None], whole.ids[at], 0),
        weights=jnp.where(real[..., None], whole.weights[at], 0.0),
        record=jnp.where(real, at // padded, -1),
        positions=jnp.where(real, at % padded - first[at // padded], 0),
        steps=places,
        targets=predicted.replace(mask=predicted.mask & asked, is_latent=predicted.is_latent & asked),
    )


def packed_hidden(params: Params, cfg: ModelConfig, rows: PackedRows) -> jax.Array:
    """Hidden states that predict rows.targets, [R,Q,D]. params: in the type of the computation."""
    embeds = embed_mixture(params["embed"], rows.ids, rows.weights)
    hidden = forward_packed(params, cfg, embeds, rows.positions, rows.record)
    return jnp.take_along_axis(hidden, rows.steps[..., None], axis=1)
