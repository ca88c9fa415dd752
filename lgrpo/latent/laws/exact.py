"""Unclamped Gumbel noise on the whole vocabulary, and the density of exactly what is drawn from it (DESIGN section 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from lgrpo.latent.law import Law, Step, TokenLogps

if TYPE_CHECKING:
    import jax

    from lgrpo.latent.mixture import LatentChoice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact(Law):
    """The K largest of log-prob plus noise, up to a common shift. For K = 1 the categorical distribution. Needs no nucleus, clamp or shift."""

    unbiased: ClassVar[bool] = True
    needs_rest: ClassVar[bool] = True
    scored: ClassVar[bool] = True

    def draw(self, c: Any, logits: jax.Array, keys: jax.Array, noise_scale: jax.Array, end: int) -> LatentChoice:
        from lgrpo.latent.mixture import sample_latent

        plain = {"one_sided": False, "clamp": None, "top_p": 1.0, "end_rule": "sampled"}
        return sample_latent(logits, keys, k=c.k, think_end_id=end, tau=c.tau, noise_scale=noise_scale, **plain)

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
        from lgrpo.latent.noise import exact_logp

        return exact_logp(step.scores / noise_scale[..., None], tokens.chosen, tokens.rest)

    def temperatures(self, c: Any, noise_scale: jax.Array, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
        return noise_scale, noise_scale  # the law is that of softmax(l / s), the end of thinking included

    def problems(self, cfg: Any, training: bool) -> Iterator[str]:
        answer, scale = cfg.rollout.answer, cfg.rollout.latent.noise_scale
        if training and answer.sampler == "gumbel_top1" and answer.temperature != scale:
            yield (
                f"rollout.answer.sampler=gumbel_top1: it draws at rollout.latent.noise_scale={scale}, but the loss scores softmax(z / T) at "
                f"rollout.answer.temperature={answer.temperature}; use sample"
            )

    def margins(self, c: Any, step: Step, logps: jax.Array) -> jax.Array:
        return step.scores / (c.noise_scale or 1.0) - logps  # its shift means nothing

    def describe(self, c: Any) -> str:
        return f"noise scale {c.noise_scale:g}, unclamped, on the whole vocabulary; its exact density"
