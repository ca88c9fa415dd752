"""Clamped Gumbel noise on the K best tokens of a nucleus, scored component by component: the paper's law, the official code's, and Soft-GRPO's.

Paper section on one-sided noise; arXiv 2604.27998. What is scored is not quite what is drawn (docs/deviations.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lgrpo.bounds import Mass, NonNegative, ScoreGradient
from lgrpo.latent.law import Law, Step, TokenLogps

if TYPE_CHECKING:
    import jax

    from lgrpo.latent.mixture import LatentChoice
    from lgrpo.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gumbel(Law):
    """Top-K of log-prob plus clamped Gumbel noise; the unclamped density of each component's noise, averaged or summed."""

    scored: ClassVar[bool] = True
    signed: ClassVar[bool] = True

    one_sided: bool = True
    """Shift the clamped noise so that no recorded score lies below its log-prob (stabilizer 2)."""
    delta: NonNegative = 0.0
    """Extra shift of one-sided noise, delta >= 0."""
    clamp: tuple[float, float] | None = (-1.5, 3.0)
    """Range of the Gumbel noise before shift and scale; None: unclamped."""
    top_p: Mass = 0.95
    """Mass of the nucleus that may enter a mixture (the K most likely tokens always may)."""
    order: Literal["perturb_then_topk", "topk_then_perturb"] = "perturb_then_topk"
    """Noise on the whole support before the K best are taken, or only on the K most likely (Soft-GRPO)."""
    end_rule: Literal["argmax", "sampled"] = "argmax"
    """argmax: a step whose most likely token is the end of thinking ends it without noise; sampled: only the noise decides."""
    density: Literal["mean", "weighted", "sum"] = "mean"
    """Log-densities of the components: their mean (paper), by mixture weight, or their sum, the joint density of K independent draws."""
    density_scale: Literal["noise", "unit"] = "noise"
    """noise: the density of noise of scale s; unit: scale 1 whatever s is (official code)."""
    score_gradient: ScoreGradient = "plain"
    """Gradient for components whose score fell below its log-prob where the advantage is not positive."""

    @property
    def reads_advantages(self) -> bool:
        return self.score_gradient != "plain"

    @property
    def _shift(self) -> float:
        return self.delta - self.clamp[0] if self.one_sided and self.clamp is not None else 0.0

    def draw(self, c: Any, logits: jax.Array, keys: jax.Array, noise_scale: jax.Array, end: int) -> LatentChoice:
        from lgrpo.latent.mixture import sample_latent

        names = ("one_sided", "delta", "clamp", "top_p", "order", "end_rule")
        own = {name: getattr(self, name) for name in names}
        return sample_latent(logits, keys, k=c.k, think_end_id=end, tau=c.tau, noise_scale=noise_scale, **own)

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
        import jax.numpy as jnp

        from lgrpo.latent.noise import gumbel_logp

        more = {"over": self.density, "score_gradient": self.score_gradient, "advantages": advantages, "weights": step.weights}
        if self.density_scale == "unit":
            return gumbel_logp(step.scores, tokens.chosen, **more)
        scale, jacobian = noise_scale[..., None], jnp.log(noise_scale)
        if self.density == "sum":
            jacobian = tokens.chosen.shape[-1] * jacobian
        return gumbel_logp(step.scores / scale, tokens.chosen / scale, **more) - jacobian

    def problems(self, cfg: Any, training: bool) -> Iterator[str]:
        path = "rollout.latent.law"
        if self.one_sided and self.clamp is None:
            yield f"{path}.one_sided=True: {path}.clamp=None has no low end to shift by; give a clamp or set one_sided to False"
        if self.clamp is not None and self.clamp[0] >= self.clamp[1]:
            yield f"{path}.clamp={self.clamp}: the low end is not below the high end; use for instance (-1.5, 3.0), or None"

    def margins(self, c: Any, step: Step, logps: jax.Array) -> jax.Array:
        return (step.scores - logps) / (1.0 if self.density_scale == "unit" else c.noise_scale or 1.0)

    def atoms(self, c: Any) -> tuple[float, float] | None:
        return None if self.clamp is None else tuple((end + self._shift) * c.noise_scale for end in self.clamp)

    def noise_of(self, c: Any, margins: Array) -> Array:
        return margins / c.noise_scale - self._shift

    def describe(self, c: Any) -> str:
        clamp = "not clamped" if self.clamp is None else f"clamped to [{self.clamp[0]:g}, {self.clamp[1]:g}]"
        return f"noise scale {c.noise_scale:g}, {'one-sided' if self.one_sided else 'two-sided'}, {clamp}; density: {self.density}"
