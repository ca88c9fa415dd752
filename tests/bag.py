"""A law of one's own: K tokens, each drawn from softmax(z / temperature) by itself, mixed in equal parts. Unbiased, since it scores what it draws."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lgrpo.bounds import Positive
from lgrpo.latent.draw import categorical
from lgrpo.latent.law import Law
from lgrpo.latent.mixture import LatentChoice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bag(Law):
    unbiased: ClassVar[bool] = True

    temperature: Positive = 1.0
    """Of the draws. A setting like any other: --rollout.latent.law.temperature 0.7"""

    def draw(self, c, logits, keys, noise_scale, end):
        each = jax.vmap(lambda key: jax.random.split(key, c.k), out_axes=1)(keys)
        drawn = jax.vmap(lambda key: categorical(logits / self.temperature, key), out_axes=1)(each)
        noisy = noise_scale > 0
        ids = jnp.where(noisy[:, None], drawn, jnp.argmax(logits, axis=-1)[:, None]).astype(jnp.int32)
        return LatentChoice(ids=ids, scores=jnp.zeros(ids.shape), weights=jnp.full(ids.shape, 1 / c.k), noisy=noisy)

    def logp(self, c, step, tokens, noise_scale, *, table=None, advantages=None):
        return tokens.chosen.sum(axis=-1)

    def temperatures(self, c, noise_scale, answer):
        drawn = jnp.full_like(answer, self.temperature)
        return drawn, drawn  # the first draw says whether thinking ends, so the end is scored as it
