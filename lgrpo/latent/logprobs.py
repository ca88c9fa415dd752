"""Log-probs of a few tokens per position without ever holding [N, T, V] logits, and what rollout and learner ask of the law alike."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lgrpo.config import RolloutConfig
from lgrpo.latent.draw import Masses, block_masses, rest_mass, top_k
from lgrpo.latent.law import Step, TokenLogps
from lgrpo.latent.mixture import embed_mixture, mix_rows
from lgrpo.models.decoder import project, unembedding, whole_table
from lgrpo.models.products import across, transposed
from lgrpo.sharding import constrain_batch
from lgrpo.types import Params

BANNED = -1e30  # finite, so that 0 * logit and logit - logit stay finite
_NOTHING = -1e20  # a mass below the exponential of this holds banned tokens only, whatever the temperature


def ban(logits: jax.Array, token: int, banned: jax.Array) -> jax.Array:
    """Makes `token` impossible where banned [...]. logits [..., V]."""
    return logits.at[..., token].set(jnp.where(banned, BANNED, logits[..., token]))


class _Norm(NamedTuple):
    """The normalisation of logits, in two parts: near probability 1 their sum would round away what a log-prob is made of."""

    highest: jax.Array  # float32 [...]; the largest logit
    above: jax.Array  # float32 [...]; logsumexp minus it

    def logp(self, scaled: jax.Array) -> jax.Array:
        """Log-probs of logits [..., n]."""
        return (scaled - self.highest[..., None]) - self.above[..., None]


def _normalized(
    logits: jax.Array, ids: jax.Array, with_rest: bool, temperature: jax.Array | float = 1.0, masses: Masses | None = None
) -> tuple[TokenLogps, _Norm]:
    """token_logps of logits divided by temperature [..., 1], and their normalisation. masses: theirs, where they are at hand."""
    masses = block_masses(logits, temperature) if masses is None else masses
    norm = _Norm(masses.highest[..., 0], jax.nn.logsumexp(masses.logs, axis=-1))
    chosen = norm.logp(jnp.take_along_axis(logits, ids, axis=-1) / temperature)
    if not with_rest:
        return TokenLogps(chosen, None), norm
    rest = rest_mass(logits, masses, ids, temperature)
    return TokenLogps(chosen, jnp.where(rest > _NOTHING, rest - norm.above, BANNED)), norm


def _with_end(ids: jax.Array, end: int) -> jax.Array:
    return jnp.concatenate([ids, jnp.full_like(ids[..., :1], end)], axis=-1)


def _split_end(out: TokenLogps) -> TokenLogps:
    """The last of the ids was the end of thinking."""
    return out._replace(chosen=out.chosen[..., :-1], end=out.chosen[..., -1])


def token_logps(
    logits: jax.Array,
    ids: jax.Array,
    temperature: jax.Array,
    *,
    with_rest: bool = False,
    end: int | None = None,
    masses: Masses | None = None,
) -> TokenLogps:
    """log softmax(logits / temperature) at ids. logits float32 [..., V], ids [..., K], temperature [...].

    rest: summed up without the ids, in its own maximum; BANNED where nothing possible is outside them. end: an id whose log-prob is wanted too.
    masses: block_masses of logits and temperature, where they are at hand.
    """
    wanted = ids if end is None else _with_end(ids, end)
    out = _normalized(logits, wanted, with_rest, temperature[..., None], masses)[0]
    return out if end is None else _split_end(out)


class _Positions(NamedTuple):
    """M positions of one slice, or [count, M] of all."""

    hidden: jax.Array  # [M, D]
    ids: jax.Array  # int [M, K]
    temperature: jax.Array  # float32 [M]
    banned: jax.Array | None  # bool [M]


class _Saved(NamedTuple):
    """What the backward pass needs of a slice besides its positions."""

    out: TokenLogps  # with the rest, whether or not it is asked for
    norm: _Norm  # [M]
    outside: jax.Array | None  # float32 [M, D]; expected row of the table under the model outside `ids`, for a frozen table


class _Table(NamedTuple):
    """An output projection for a loop over slices."""

    whole: jax.Array  # [D, V]
    copied: jax.Array | None  # [V, D]; `across`

    @classmethod
    def of(cls, whole: jax.Array) -> _Table:
        return cls(whole, across(whole))

    @property
    def rows(self) -> jax.Array:
        """[V, D]"""
        return self.whole.T if self.copied is None else self.copied


class _Plan(NamedTuple):
    """Static arguments."""

    banned_id: int
    with_rest: bool
    survey: bool = False
    with_end: bool = False  # the last of the ids is that of the end


def _logits(plan: _Plan, table: jax.Array, at: _Positions) -> jax.Array:
    """Logits [M,V]. Whoever reads them divides by the temperature: quotients that are kept are one more array of this size."""
    logits = project(at.hidden, table)
    return logits if at.banned is None else ban(logits, plan.banned_id, at.banned)


def _put(x: jax.Array, ids: jax.Array, values: jax.Array | float) -> jax.Array:
    """x [M,V] with `values` [M,K] at ids [M,K]; equal ids must have equal values."""
    return x.at[jnp.arange(x.shape[0])[:, None], ids].set(values)


def _compared(x: jax.Array, ids: jax.Array) -> jax.Array:
    """As _put with 0, inside the operation that makes x: K comparisons of each entry."""
    at = jax.lax.broadcasted_iota(ids.dtype, x.shape, 1)
    return jnp.where(functools.reduce(jnp.logical_or, (at == ids[:, k, None] for k in range(ids.shape[1]))), 0.0, x)


def _outside(logits: jax.Array, saved: _Saved, at: _Positions, dtype: jnp.dtype) -> jax.Array:
    """Probabilities [M,V] among the tokens outside the ids, 0 at ids."""
    probs = jnp.exp(jnp.minimum(saved.norm.logp(logits / at.temperature[:, None]) - saved.out.rest[:, None], 0.0))
    # A TPU lays all of it out anew before a scatter, and again after it.
    kept = jax.lax.platform_dependent(probs, at.ids, tpu=_compared, default=lambda x, ids: _put(x, ids, 0.0))
    return kept.astype(dtype)


def _forward_slice(plan: _Plan, table: _Table, at: _Positions, *, backward: bool, frozen: bool) -> _Saved:
    """Log-probs of a slice; for a backward pass with their rest, and with what replaces its logits there when the table is frozen."""
    logits, temperature = _logits(plan, table.whole, at), at.temperature[:, None]
    out, norm = _normalized(logits, at.ids, plan.with_rest or backward, temperature)
    if plan.survey:
        kth, end = top_k(logits, at.ids.shape[-1] - plan.with_end)[0][:, -1:], logits[:, plan.banned_id, None]
        out = out._replace(kth=norm.logp(kth / temperature)[:, 0], end=norm.logp(end / temperature)[:, 0])
    saved = _Saved(out, norm, None)
    return saved._replace(outside=project(_outside(logits, saved, at, table.whole.dtype), table.rows)) if frozen else saved


def _shown(plan: _Plan, out: TokenLogps) -> TokenLogps:
    """What the caller gets."""
    return out if plan.with_rest else out._replace(rest=None)


def _moves(plan: _Plan, at: _Positions, saved: _Saved, cotangent: TokenLogps) -> tuple[jax.Array, jax.Array]:
    """Gradient in the logits of `ids` [M,K] (for equal ids the first has all of it, the others 0) and in those of all others together [M,1].

    With P the probabilities of the distinct ids and of the rest, and C the cotangents of their log-probs, that of i is C_i - P_i sum_j C_j. Written
    as sum_j (C_i P_j - P_i C_j) it never takes 1 - P_i as a difference, and P near 1 costs no digits.
    """
    same = at.ids[:, :, None] == at.ids[:, None, :]
    first = ~jnp.tril(same, -1).any(-1)
    own = jnp.where(first, jnp.where(same, cotangent.chosen[:, None, :], 0.0).sum(-1), 0.0)
    rest = cotangent.rest if plan.with_rest else jnp.zeros(own.shape[:1])
    rest = jnp.where(saved.out.rest > BANNED, rest, 0.0)  # where nothing is outside `ids`, there is no mass to move
    pull = jnp.concatenate([own, rest[:, None]], axis=-1) / at.temperature[:, None]
    probs = jnp.concatenate([jnp.where(first, jnp.exp(saved.out.chosen), 0.0), jnp.exp(saved.out.rest)[:, None]], axis=-1)
    moves = (pull[:, :, None] * probs[:, None, :] - probs[:, :, None] * pull[:, None, :]).sum(-1)
    chosen = moves[:, :-1]
    if at.banned is not None:
        chosen = jnp.where(at.banned[:, None] & (at.ids == plan.banned_id), 0.0, chosen)
    return chosen, moves[:, -1:]


def _backward_frozen(plan: _Plan, table: _Table, at: _Positions, saved: _Saved, cotangent: TokenLogps) -> jax.Array:
    """Gradient of hidden [M,D]."""
    chosen, others = _moves(plan, at, saved, cotangent)
    return (mix_rows(table.rows, at.ids, chosen) + others * saved.outside).astype(at.hidden.dtype)


def _backward_slice(plan: _Plan, table: _Table, at: _Positions, saved: _Saved, cotangent: TokenLogps) -> tuple[jax.Array, jax.Array]:
    """(gradient of hidden [M,D], gradient of the table [D,V] float32)."""
    chosen, others = _moves(plan, at, saved, cotangent)
    same = at.ids[:, :, None] == at.ids[:, None, :]
    grad = others * _outside(_logits(plan, table.whole, at), saved, at, jnp.float32)
    grad = _put(grad, at.ids, jnp.where(same, chosen[:, None, :], 0.0).sum(-1))
    grad = grad.astype(table.whole.dtype)
    return project(grad, table.rows).astype(at.hidden.dtype), project(transposed(at.hidden), grad)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sliced(plan: _Plan, table: jax.Array, slices: _Positions) -> TokenLogps:
    """Log-probs of all slices, one after another. table [D,V]; leaves of slices [count, M, ...].

    The gradient is written by hand for three reasons: logits are formed once more instead of being kept or differentiated op by op; the gradient
    of K gathers is K numbers written into one array and not an array of its own; and a frozen table, as in RL, needs no second pass over the
    vocabulary, because all that its gradient takes from the logits is one expected row of the table.
    """
    held = _Table.of(whole_table(table))
    return jax.lax.map(lambda at: _forward_slice(plan, held, at, backward=False, frozen=False).out, slices)


def _sliced_forward(plan: _Plan, table: Any, slices: Any) -> tuple[TokenLogps, tuple[Any, ...]]:
    frozen = not table.perturbed
    table, slices = table.value, jax.tree.map(lambda x: x.value, slices)
    held = _Table.of(whole_table(table))
    saved = jax.lax.map(lambda at: _forward_slice(plan, held, at, backward=True, frozen=frozen), slices)
    return _shown(plan, saved.out), (table, slices, saved)


def _sliced_backward(plan: _Plan, residuals: tuple[Any, ...], cotangent: TokenLogps) -> tuple[Any, ...]:
    table, slices, saved = residuals
    out = _shown(plan, saved.out)
    like = jax.tree.map(lambda x, value: jnp.zeros(value.shape) if _is_zero(x) else x, cotangent, out, is_leaf=_is_zero)
    if saved.outside is not None:
        held = _Table.of(table)
        hidden = jax.lax.map(lambda xs: _backward_frozen(plan, held, *xs), (slices, saved, like))
        return None, _Positions(hidden, None, None, None)

    held = _Table.of(whole_table(table))

    def body(total: jax.Array, xs: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        hidden, part = _backward_slice(plan, held, *xs)
        return total + part, hidden

    total, hidden = jax.lax.scan(body, jnp.zeros(table.shape, jnp.float32), (slices, saved, like))
    return total.astype(table.dtype), _Positions(hidden, None, None, None)


def _is_zero(x: Any) -> bool:
    return isinstance(x, SymbolicZero)


_sliced.defvjp(_sliced_forward, _sliced_backward, symbolic_zeros=True)


@jax.named_scope("vocabulary")
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
    with_end: bool = False,
    survey: bool = False,
) -> TokenLogps:
    """token_logps of hidden states, `chunk` positions at a time, recomputed in the backward pass.

    hidden [N,T,D], ids int [N,T,K], temperature [N,T], banned bool [N,T] (where banned_id is impossible) -> float32 [N,T,K] and [N,T].
    survey: also `kth` and `end` (the log-prob of banned_id), which have no gradient. with_end: `end` with its gradient; it is not in the rest.
    Differentiable in hidden and in the output projection. The slices run along T, so that a sharded N stays where it is.
    """
    rows, length = ids.shape[:2]
    width = max(1, min(length, chunk // rows))
    count = -(-length // width)

    def slices(x: jax.Array, fill: float = 0) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, count * width - length)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
        x = jnp.moveaxis(x.reshape(rows, count, width, *x.shape[2:]), 1, 0).reshape(count, rows * width, *x.shape[2:])
        return constrain_batch(x, axis=1)

    table = unembedding(params).astype(hidden.dtype)
    ids = _with_end(ids, banned_id) if with_end else ids
    at = _Positions(slices(hidden), slices(ids), slices(temperature, fill=1), None if banned is None else slices(banned))
    out = _sliced(_Plan(banned_id, with_rest, survey, with_end), table, at)
    out = _split_end(out) if with_end else out
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(count, rows, width, *x.shape[2:]), 0, 1).reshape(rows, count * width, *x.shape[2:])[:, :length],
        out,
    )


def step_temperature(cfg: RolloutConfig, is_latent: jax.Array, is_exit: jax.Array, noise_scale: jax.Array) -> jax.Array:
    """Temperature at which each step's tokens are scored. is_latent, is_exit (ended latent thinking), noise_scale: [N,T] -> float32 [N,T].

    Latent steps, and the step that ends them, as the law says: where the same draw chose the end, it is scored as that draw is.
    """
    answer = jnp.full(is_latent.shape, cfg.answer.temperature, jnp.float32)
    latent, ended = cfg.latent.law.temperatures(cfg.latent, noise_scale, answer)
    return jnp.where(is_latent, latent, answer if ended is answer else jnp.where(is_exit, ended, answer))


def mixed_inputs(table: jax.Array, step: Step, noise_scale: jax.Array, cfg: RolloutConfig) -> jax.Array:
    """What is fed after recorded steps, [*b,D], in the type of table [V,D]. noise_scale [*b]; without noise where the scores are all 0."""
    if cfg.mode == "latent":
        return cfg.latent.law.mix(cfg.latent, table, step, noise_scale)
    return embed_mixture(table, step.ids, step.weights)
