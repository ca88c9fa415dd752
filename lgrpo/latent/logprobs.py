"""Log-probs of a few tokens per position without ever holding [N, T, V] logits, and the one rule that turns them into step log-probs."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lgrpo.config import LatentConfig, RolloutConfig
from lgrpo.latent.draw import block_masses, rest_mass, top_k
from lgrpo.latent.mixture import mix_rows
from lgrpo.latent.noise import score_logp
from lgrpo.models.decoder import project, unembedding
from lgrpo.types import Params

BANNED = -1e30  # finite, so that 0 * logit and logit - logit stay finite


def ban(logits: jax.Array, token: int, banned: jax.Array) -> jax.Array:
    """Makes `token` impossible where banned [...]. logits [..., V]."""
    return logits.at[..., token].set(jnp.where(banned, BANNED, logits[..., token]))


class TokenLogps(NamedTuple):
    """Log-probs of K tokens per position, and of all others together (None where nobody needs it)."""

    chosen: jax.Array  # float32 [..., K]
    rest: jax.Array | None  # float32 [...]
    kth: jax.Array | None = None  # float32 [...]; the K-th largest log-prob of all tokens; without gradient, for diagnostics
    end: jax.Array | None = None  # float32 [...]; log-prob of the end of thinking; without gradient


def _with_total(scaled: jax.Array, ids: jax.Array, with_rest: bool) -> tuple[TokenLogps, jax.Array]:
    """token_logps of logits that are divided by their temperature, and their logsumexp [...]."""
    highest, sums = block_masses(scaled)
    total = highest[..., 0] + jnp.log(sums.sum(-1))
    chosen = jnp.take_along_axis(scaled, ids, axis=-1) - total[..., None]
    if not with_rest:
        return TokenLogps(chosen, None), total
    rest = rest_mass(scaled, highest, sums, ids)
    some = rest > 0  # K = V leaves nothing outside the mixture; a floor instead would count where the chosen ones are that small too
    return TokenLogps(chosen, jnp.where(some, highest[..., 0] + jnp.log(jnp.where(some, rest, 1.0)) - total, BANNED)), total


def token_logps(logits: jax.Array, ids: jax.Array, temperature: jax.Array, *, with_rest: bool = False) -> TokenLogps:
    """log softmax(logits / temperature) at ids. logits float32 [..., V], ids [..., K], temperature [...]."""
    return _with_total(logits / temperature[..., None], ids, with_rest)[0]


class _Positions(NamedTuple):
    """M positions of one slice, or [count, M] of all."""

    hidden: jax.Array  # [M, D]
    ids: jax.Array  # int [M, K]
    temperature: jax.Array  # float32 [M]
    banned: jax.Array | None  # bool [M]


class _Saved(NamedTuple):
    """What the backward pass needs of a slice besides its positions. The means are there when the table is frozen."""

    out: TokenLogps
    total: jax.Array  # float32 [M]
    mean: jax.Array | None  # float32 [M, D]; expected row of the table under the model
    rest_mean: jax.Array | None  # float32 [M, D]; the same under the model outside `ids`, None without rest


class _Plan(NamedTuple):
    """Static arguments."""

    banned_id: int
    with_rest: bool
    survey: bool = False


def _logits(plan: _Plan, table: jax.Array, at: _Positions) -> jax.Array:
    """Logits [M,V] divided by their temperature."""
    logits = project(at.hidden, table)
    logits = logits if at.banned is None else ban(logits, plan.banned_id, at.banned)
    return logits / at.temperature[:, None]


def _put(x: jax.Array, ids: jax.Array, values: jax.Array | float) -> jax.Array:
    """x [M,V] with `values` [M,K] at ids [M,K]; equal ids must have equal values."""
    return x.at[jnp.arange(x.shape[0])[:, None], ids].set(values)


def _outside(scaled: jax.Array, saved: _Saved) -> jax.Array:
    """Probabilities [M,V] among the tokens outside `ids`; at ids they mean nothing."""
    return jnp.exp(jnp.minimum(scaled - (saved.total + saved.out.rest)[:, None], 0.0))


def _forward_slice(plan: _Plan, table: jax.Array, at: _Positions, *, means: bool) -> _Saved:
    """Log-probs of a slice; with `means`, also what replaces its logits in the backward pass of a frozen table."""
    scaled = _logits(plan, table, at)
    out, total = _with_total(scaled, at.ids, plan.with_rest)
    if plan.survey:
        out = out._replace(kth=top_k(scaled, at.ids.shape[-1])[0][:, -1] - total, end=scaled[:, plan.banned_id] - total)
    saved = _Saved(out, total, None, None)
    if not means:
        return saved
    if not plan.with_rest:
        probs = jnp.exp(scaled - total[:, None])
        return saved._replace(mean=project(probs.astype(table.dtype), table.T))
    rest_mean = project(_put(_outside(scaled, saved), at.ids, 0.0).astype(table.dtype), table.T)
    repeated = jnp.tril(at.ids[:, :, None] == at.ids[:, None, :], -1).any(-1)
    inside = mix_rows(table.T, at.ids, jnp.where(repeated, 0.0, jnp.exp(out.chosen)))
    return saved._replace(mean=inside + jnp.exp(out.rest)[:, None] * rest_mean, rest_mean=rest_mean)


def _backward_slice(plan: _Plan, table: jax.Array, at: _Positions, saved: _Saved, cotangent: TokenLogps) -> tuple[jax.Array, ...]:
    """(gradient of hidden [M,D], gradient of the table [D,V] float32); the first alone when the table is frozen.

    With p = softmax(z) and q its part outside `ids`, renormalised: d chosen_k = e_k - p, d rest = q - p (on tokens outside) - p (on ids).
    """
    scale = at.temperature[:, None]
    chosen = cotangent.chosen / scale
    rest = jnp.zeros_like(scale)
    if plan.with_rest:  # where nothing is outside `ids`, there is no mass to move
        rest = jnp.where(saved.out.rest > BANNED, cotangent.rest, 0.0)[:, None] / scale
    pull = chosen.sum(-1, keepdims=True) + rest
    if saved.mean is not None:
        grad = mix_rows(table.T, at.ids, chosen) - pull * saved.mean
        grad = grad if saved.rest_mean is None else grad + rest * saved.rest_mean
        return (grad.astype(at.hidden.dtype),)
    scaled = _logits(plan, table, at)
    grad = -pull * jnp.exp(scaled - saved.total[:, None])
    if plan.with_rest:
        grad = grad + rest * _outside(scaled, saved)
    same = at.ids[:, :, None] == at.ids[:, None, :]
    own = jnp.where(same, chosen[:, None, :], 0.0).sum(-1)
    grad = _put(grad, at.ids, own - pull * jnp.exp(saved.out.chosen))
    if at.banned is not None:
        grad = grad.at[:, plan.banned_id].set(jnp.where(at.banned, 0.0, grad[:, plan.banned_id]))
    grad = grad.astype(table.dtype)
    return project(grad, table.T).astype(at.hidden.dtype), project(at.hidden.T, grad)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sliced(plan: _Plan, table: jax.Array, slices: _Positions) -> TokenLogps:
    """Log-probs of all slices, one after another. table [D,V]; leaves of slices [count, M, ...].

    The gradient is written by hand for three reasons: logits are formed once more instead of being kept or differentiated op by op; the gradient
    of K gathers is K numbers written into one array and not an array of its own; and a frozen table, as in RL, needs no second pass over the
    vocabulary, because all that its gradient takes from the logits are one or two expected rows of the table.
    """
    return jax.lax.map(lambda at: _forward_slice(plan, table, at, means=False).out, slices)


def _sliced_forward(plan: _Plan, table: Any, slices: Any) -> tuple[TokenLogps, tuple[Any, ...]]:
    frozen = not table.perturbed
    table, slices = table.value, jax.tree.map(lambda x: x.value, slices)
    saved = jax.lax.map(lambda at: _forward_slice(plan, table, at, means=frozen), slices)
    return saved.out, (table, slices, saved)


def _sliced_backward(plan: _Plan, residuals: tuple[Any, ...], cotangent: TokenLogps) -> tuple[Any, ...]:
    table, slices, saved = residuals
    like = jax.tree.map(lambda x, value: jnp.zeros(value.shape) if _is_zero(x) else x, cotangent, saved.out, is_leaf=_is_zero)
    if saved.mean is not None:
        hidden = jax.lax.map(lambda xs: _backward_slice(plan, table, *xs)[0], (slices, saved, like))
        return None, _Positions(hidden, None, None, None)

    def body(total: jax.Array, xs: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        hidden, part = _backward_slice(plan, table, *xs)
        return total + part, hidden

    total, hidden = jax.lax.scan(body, jnp.zeros(table.shape, jnp.float32), (slices, saved, like))
    return total.astype(table.dtype), _Positions(hidden, None, None, None)


def _is_zero(x: Any) -> bool:
    return isinstance(x, SymbolicZero)


_sliced.defvjp(_sliced_forward, _sliced_backward, symbolic_zeros=True)


def chunked_logps(
    params: Params,
    hidden: jax.Array,
    ids: jax.Array,
    temperature: jax.Array,
    *,
    chunk: int,
    banned_id: int = 0,
    banned: jax.Array | None = None,
    with_rest: bool = False,
    survey: bool = False,
) -> TokenLogps:
    """token_logps of hidden states, `chunk` positions at a time, recomputed in the backward pass.

    hidden [N,T,D], ids int [N,T,K], temperature [N,T], banned bool [N,T] (where banned_id is impossible) -> float32 [N,T,K] and [N,T].
    survey: also `kth` and `end` (the log-prob of banned_id), which have no gradient.
    Differentiable in hidden and in the output projection. The slices run along T, so that a sharded N stays where it is.
    """
    rows, length = ids.shape[:2]
    width = max(1, min(length, chunk // rows))
    count = -(-length // width)

    def slices(x: jax.Array, fill: float = 0) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, count * width - length)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
        return jnp.moveaxis(x.reshape(rows, count, width, *x.shape[2:]), 1, 0).reshape(count, rows * width, *x.shape[2:])

    table = unembedding(params).astype(hidden.dtype)
    at = _Positions(slices(hidden), slices(ids), slices(temperature, fill=1), None if banned is None else slices(banned))
    out = _sliced(_Plan(banned_id, with_rest, survey), table, at)
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(count, rows, width, *x.shape[2:]), 0, 1).reshape(rows, count * width, *x.shape[2:])[:, :length],
        out,
    )


def step_temperature(cfg: RolloutConfig, is_latent: jax.Array, is_exit: jax.Array, noise_scale: jax.Array) -> jax.Array:
    """Temperature at which each step's tokens are scored. is_latent, is_exit (ended latent thinking), noise_scale: [N,T] -> float32 [N,T].

    Latent steps: 1, and the noise scale under `exact`, whose law is that of softmax(l / s). The step that ends latent thinking was chosen by
    the same noise, so `exact` scores it at s too; the other densities score it as the official code does, like an answer token.
    """
    answer = jnp.full(is_latent.shape, cfg.answer.temperature, jnp.float32)
    if cfg.latent.density == "exact":
        return jnp.where(is_latent | is_exit, noise_scale, answer)
    return jnp.where(is_latent, 1.0, answer)


def latent_logp(
    cfg: LatentConfig,
    scores: jax.Array,
    tokens: TokenLogps,
    weights: jax.Array,
    noise_scale: jax.Array,
    advantages: jax.Array | None = None,
) -> jax.Array:
    """Density of recorded latent steps. scores, weights [*b,K]; tokens at step_temperature; noise_scale, advantages [*b] -> [*b]."""
    scale, logps = noise_scale[..., None], tokens.chosen
    if cfg.density == "exact":
        return score_logp(scores / scale, logps, density="exact", rest_logp=tokens.rest)
    settings = {"density": cfg.density, "score_gradient": cfg.score_gradient, "advantages": advantages, "weights": weights}
    if cfg.density_scale == "unit":
        return score_logp(scores, logps, **settings)
    return score_logp(scores / scale, logps / scale, **settings) - jnp.log(noise_scale)
