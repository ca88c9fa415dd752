"""Advantages of one's own: the rank of a reward in its group, from -1 to 1, whatever the rewards' scale."""

import jax.numpy as jnp


def by_rank(rewards, valid):
    counted = valid[:, None, :]
    below = ((rewards[:, :, None] > rewards[:, None, :]) & counted).sum(-1)
    above = ((rewards[:, :, None] < rewards[:, None, :]) & counted).sum(-1)
    return (below - above) / jnp.maximum(valid.sum(-1, keepdims=True) - 1, 1)
