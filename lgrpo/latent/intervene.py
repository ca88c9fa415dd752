"""What is fed at latent steps instead of the model's own mixtures: the hook by which evaluation asks whether the latents are used."""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
from flax import struct


class Kind(enum.IntEnum):
    """What happens to the thinking of a row. All but CUT are about latent steps."""

    NONE = 0  # nothing
    SHUFFLED = 1  # step t feeds the latent that another problem had at its step t (its last one, where it had fewer)
    REORDERED = 2  # the row's own latents of an undisturbed run, in another order
    ZEROED = 3  # the embedding of zeros
    REPEATED = 4  # the row's first latent again and again
    HARDENED = 5  # the heaviest token alone
    CUT = 6  # thinking, in latents or in tokens, is ended by force after its first `steps` steps
    FIRST = 7  # the first step feeds the donor's first latent, the others their own (lgrpo.evaluation.closure)


@struct.dataclass
class Intervention:
    """Per row. The donor is read by SHUFFLED, REORDERED and FIRST only; a donor without steps leaves the row as it is. A row that ends its thinking
    by itself within the steps that CUT leaves it is not changed."""

    kind: jax.Array  # int32 [N]; Kind
    ids: jax.Array  # int32 [N, T, K]; the donor's latents
    weights: jax.Array  # float32 [N, T, K]
    steps: jax.Array  # int32 [N]; latents that the donor has; CUT: steps of thinking that are kept


def replace_latents(
    how: Intervention, step: jax.Array, ids: jax.Array, weights: jax.Array, first_ids: jax.Array, first_weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(ids, weights) that a latent step feeds, [N, K] each, from those that the model chose and those of the row's first step."""
    donor_ids = jax.lax.dynamic_index_in_dim(how.ids, step, axis=1, keepdims=False)
    donor_weights = jax.lax.dynamic_index_in_dim(how.weights, step, axis=1, keepdims=False)
    last = jnp.maximum(how.steps - 1, 0)[:, None, None]
    beyond = (step >= how.steps)[:, None]
    donor_ids = jnp.where(beyond, jnp.take_along_axis(how.ids, last, axis=1)[:, 0], donor_ids)
    donor_weights = jnp.where(beyond, jnp.take_along_axis(how.weights, last, axis=1)[:, 0], donor_weights)
    hard = jnp.zeros_like(weights).at[:, 0].set(1.0)

    def pick(kind: Kind) -> jax.Array:
        return (how.kind == kind)[:, None]

    donated = (pick(Kind.SHUFFLED) | pick(Kind.REORDERED) | (pick(Kind.FIRST) & (step == 0))) & (how.steps > 0)[:, None]
    repeated = pick(Kind.REPEATED)
    new_ids = jnp.select([donated, repeated], [donor_ids, first_ids], ids)
    new_weights = jnp.select(
        [donated, repeated, pick(Kind.ZEROED), pick(Kind.HARDENED)], [donor_weights, first_weights, jnp.zeros_like(weights), hard], weights
    )
    return new_ids, new_weights
