"""The seam of the method: a law says how a latent step is drawn and what its log-prob is. Nothing else in lgrpo knows one by name.

A law is a frozen dataclass whose fields are its settings, so it lives in the config (rollout.latent.law), is hashable, takes command-line options and
goes to JSON by its import path. Ours are in lgrpo/latent/laws/, one file each; one of your own may stand in any file (docs/extending.md).
Ours import JAX where they compute: a config holds a law, and a command line that is mistyped should answer before JAX is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import jax

    from lgrpo.latent.mixture import LatentChoice
    from lgrpo.types import Array


class Step(NamedTuple):
    """Latent steps as they were recorded."""

    ids: Array  # int [*b, K]
    scores: Array  # float32 [*b, K]; whatever the law recorded of its draw; all 0 where nothing was drawn
    weights: Array  # float32 [*b, K]


class TokenLogps(NamedTuple):
    """Log-probs of K tokens per position, and of all others together (None where nobody needs it)."""

    chosen: Array  # float32 [..., K]
    rest: Array | None  # float32 [...]
    kth: Array | None = None  # float32 [...]; the K-th largest log-prob of all tokens; without gradient, for diagnostics
    end: Array | None = None  # float32 [...]; log-prob of the end of thinking; with gradient for laws that need it, else for diagnostics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """How a latent step is drawn and scored. A subclass gives at least `draw` and `logp`; both are pure and run under jit.

    c: the settings that all laws share (LatentConfig: k, tau, noise_scale); a law is part of the config and does not import it. noise_scale float32:
    the scale row by row, which evaluation may set to another than c's; 0 means no noise. end: id of the end of thinking; a row whose ids[0] is `end`
    leaves latent mode, whatever else was drawn.
    """

    unbiased: ClassVar[bool] = False
    """Claims that the mean of its score is zero under what it draws; tests/invariants/test_numerics.py holds it to that."""
    needs_rest: ClassVar[bool] = False
    """logp reads tokens.rest."""
    needs_end: ClassVar[bool] = False
    """logp reads tokens.end (which tokens.rest then leaves out)."""
    scored: ClassVar[bool] = False
    """Its scores are log-prob plus noise, component by component: `margins` and `noise_of` mean something."""
    signed: ClassVar[bool] = False
    """The slope of a component has the sign of its margin, so that a margin below 0 is a misalignment."""
    reads_advantages: ClassVar[bool] = False
    """logp has another gradient for other advantages."""

    def draw(self, c: Any, logits: jax.Array, keys: jax.Array, noise_scale: jax.Array, end: int) -> LatentChoice:
        """One latent step for every row. logits float32 [N,V] (a forbidden token has -1e30), keys [N], noise_scale [N]."""
        raise NotImplementedError

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
        """Log-prob [*b] of recorded steps. tokens: log-probs of step.ids at the temperature of `temperatures`; noise_scale > 0 [*b];
        table: the embedding table [V,D]; advantages [*b] may only change the gradient."""
        raise NotImplementedError

    def mix(self, c: Any, table: jax.Array, step: Step, noise_scale: jax.Array) -> jax.Array:
        """The next input [*b,D], in the type of table [V,D]. Where step.scores are all 0 (answer steps, interventions) it is the plain mixture."""
        from lgrpo.latent.mixture import embed_mixture

        return embed_mixture(table, step.ids, step.weights)

    def temperatures(self, c: Any, noise_scale: jax.Array, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Temperatures at which tokens are scored: at latent steps, and at the step that ends thinking. answer: that of answer steps."""
        import jax.numpy as jnp

        return jnp.ones_like(answer), answer

    def problems(self, cfg: Any, training: bool) -> Iterator[str]:
        """What of the law cannot be combined with the rest of a config, each with field, value and remedy."""
        if training and cfg.rollout.answer.sampler == "gumbel_top1":
            yield f"rollout.answer.sampler=gumbel_top1: {type(self).__name__} draws no tokens; use sample"

    def margins(self, c: Any, step: Step, logps: jax.Array) -> Array:
        """Score minus log-prob [*b,K] in the units in which `logp` sees it, for diagnostics."""
        return step.scores - logps

    def atoms(self, c: Any) -> tuple[float, float] | None:
        """The ends of score minus log-prob (temperature 1) at which the noise has atoms."""
        return None

    def noise_of(self, c: Any, margins: Array) -> Array:
        """The draws behind score minus log-prob (temperature 1), before shift and scale, for a noise scale > 0."""
        return margins / c.noise_scale

    def describe(self, c: Any) -> str:
        """In words, for a reader of a trace."""
        return f"noise scale {c.noise_scale:g}, {self}"
