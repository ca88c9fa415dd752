"""Soft tokens with Gaussian noise on the embedding (arXiv 2509.19170): the next input is a mixture of embeddings plus sigma times noise.

The mixture is softmax(z / tau) over its K most likely tokens, the end of thinking left out. The source leaves open how thinking ends where it is
not cut; here the mixture's weight of the end decides: with that probability the step is the end, else the mixture of the others. So the log-prob of a
latent step is log(1 - p_end) plus that of the Gaussian, and the step that ends thinking scores log p_end, both at temperature tau.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from lgrpo.bounds import Positive
from lgrpo.latent.law import Law, Step, TokenLogps

if TYPE_CHECKING:
    import jax

    from lgrpo.latent.mixture import LatentChoice

_SEEDS = 2.0**23  # distinct seeds that a float32 column carries exactly, from 1; 0 says that there is no noise
_SURE = -1e-6  # log-prob of the end above which staying has no finite log-prob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(Law):
    """Mixture embedding plus Gaussian noise. The record keeps the mixture and, in two columns of the scores, what regenerates the noise."""

    unbiased: ClassVar[bool] = True
    needs_end: ClassVar[bool] = True

    sigma: Positive = 0.33
    """Standard deviation of the noise on each coordinate at noise scale 1, as a multiple of the embedding table's root mean square."""

    def draw(self, c: Any, logits: jax.Array, keys: jax.Array, noise_scale: jax.Array, end: int) -> LatentChoice:
        import jax
        import jax.numpy as jnp

        from lgrpo.latent.draw import top_k
        from lgrpo.latent.mixture import LatentChoice, is_argmax

        scaled = logits.astype(jnp.float32) / c.tau
        values, ids = top_k(scaled.at[:, end].set(-jnp.inf), c.k)
        weights, noisy = jax.nn.softmax(values, axis=-1), noise_scale > 0
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (3,), jnp.float32))(keys)
        p_end = jnp.exp(scaled[:, end] - jax.nn.logsumexp(scaled, axis=-1))
        ends = jnp.where(noisy, uniform[:, 0] < p_end, is_argmax(logits, end))
        seeds = jnp.where(noisy[:, None], 1.0 + jnp.floor(uniform[:, 1 : 1 + c.k] * _SEEDS), 0.0)
        scores = jnp.zeros_like(weights).at[:, : seeds.shape[1]].set(seeds)
        return LatentChoice(
            ids=ids.at[:, 0].set(jnp.where(ends, end, ids[:, 0])).astype(jnp.int32), scores=scores, weights=weights, noisy=noisy
        )

    def _noise(self, scores: jax.Array, width: int) -> jax.Array:
        """Standard normal noise [*b,D] of recorded scores [*b,K]."""
        import jax
        import jax.numpy as jnp

        seeds = scores[..., :2].reshape(-1, min(scores.shape[-1], 2)).astype(jnp.int32)

        def one(seed: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed[0]), seed[-1])
            return jnp.where(seed[0] > 0, jax.random.normal(key, (width,), jnp.float32), 0.0)

        return jax.vmap(one)(seeds).reshape(*scores.shape[:-1], width)

    def _deviation(self, table: jax.Array, noise_scale: jax.Array) -> jax.Array:
        """Standard deviation [*b, 1] of each coordinate."""
        import jax.numpy as jnp

        size = jnp.sqrt(jnp.mean(jnp.square(table.astype(jnp.float32))))
        return (self.sigma * noise_scale * size)[..., None]

    def mix(self, c: Any, table: jax.Array, step: Step, noise_scale: jax.Array) -> jax.Array:
        from lgrpo.latent.mixture import mix_rows

        noise = self._noise(step.scores, table.shape[1]) * self._deviation(table, noise_scale)
        return (mix_rows(table, step.ids, step.weights) + noise).astype(table.dtype)

    def logp(
        self,
        c: Any,
        step: Step,
        tokens: TokenLogps,
        noise_scale: jax.Array,
        *,
        table: jax.Array | None = None,
        advantages: jax.Array | None = None,
    ) -> jax.Array:
        import jax
        import jax.numpy as jnp

        from lgrpo.latent.mixture import mix_rows

        table = jax.lax.stop_gradient(table)
        width, deviation = table.shape[1], self._deviation(table, noise_scale)

        @jax.checkpoint  # or K rows of the table would be kept for every position
        def squares(chosen: jax.Array) -> jax.Array:
            moved = mix_rows(table, step.ids, step.weights - jax.nn.softmax(chosen, axis=-1))
            return jnp.square(self._noise(step.scores, width) + moved / deviation).sum(-1)

        stays = jnp.log(-jnp.expm1(jnp.minimum(tokens.end, _SURE)))
        return stays - 0.5 * squares(tokens.chosen) - width * (jnp.log(deviation[..., 0]) + 0.5 * math.log(2 * math.pi))

    def temperatures(self, c: Any, noise_scale: jax.Array, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
        import jax.numpy as jnp

        tau = jnp.full_like(answer, c.tau)
        return tau, tau

    def problems(self, cfg: Any, training: bool) -> Iterator[str]:
        yield from super().problems(cfg, training)
        if cfg.model.vocab_size and cfg.rollout.latent.k >= cfg.model.vocab_size:
            yield f"rollout.latent.k={cfg.rollout.latent.k}: the end of thinking is in no mixture; use at most {cfg.model.vocab_size - 1}"
        if training and not cfg.optim.freeze_embed:
            yield "optim.freeze_embed=False: what was fed is recorded as a mixture of embeddings, which may not move; set it to True"

    def describe(self, c: Any) -> str:
        return f"Gaussian noise on the embedding, {self.sigma * c.noise_scale:g} of the table's root mean square"
