"""What every kind of step does with gradients: losses come as (sum, count); gradients of sums are added over micro-batches and divided once,
by the count of the whole optimizer batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lgrpo.config import ExperimentConfig, LoraConfig
from lgrpo.models.lora import attach, merge
from lgrpo.sharding import constrain_batch
from lgrpo.train.optimizer import join, last_rate, make_optimizer, moved, norm_in_float32, split
from lgrpo.types import Max, Mean, Params, TrainState

Metrics = dict[str, Mean | Max]


def total_updates(cfg: ExperimentConfig, *, rl: bool) -> int:
    """Optimizer updates of the whole run."""
    return cfg.train.num_steps * (cfg.train.updates_per_step if rl else 1)


def scheduled_updates(cfg: ExperimentConfig, *, rl: bool) -> int:
    """total_updates where the schedule of the learning rate depends on it, else 0."""
    return total_updates(cfg, rl=rl) if cfg.optim.schedule == "cosine" else 0


def lora_of(cfg: ExperimentConfig, *, rl: bool) -> LoraConfig:
    """The adapters of a kind of run; of rank 0 where the weights themselves are trained."""
    return cfg.algo.lora if rl else cfg.sft.lora


def attached_weights(params: Params, lora: LoraConfig, key: jax.Array | None = None) -> Params:
    """Weights for a forward pass inside an update: adapters are merged layer by layer. key: draws their dropout (None: none)."""
    if not lora.rank:
        return params
    return attach(params["base"], params["adapters"], lora.alpha / lora.rank, dropout=0.0 if key is None else lora.dropout, key=key)


def merged_weights(params: Params, lora: LoraConfig) -> Params:
    """Ordinary weights, for all that knows no adapters."""
    return merge(params["base"], params["adapters"], lora.alpha / lora.rank) if lora.rank else params


def init_state(params: Params, cfg: ExperimentConfig, *, rl: bool) -> TrainState:
    """Fresh optimizer state around `params`; keeps a copy of them when the KL needs a reference. With adapters their base is the reference."""
    moving, _ = split(params, cfg.optim, cfg.sft.stage)
    optimizer = make_optimizer(cfg.optim, moving)
    reference = jax.tree.map(jnp.copy, params) if rl and cfg.algo.kl_coef > 0 and not cfg.algo.lora.rank else None
    # One array each: a donated buffer may not appear twice.
    return TrainState(
        jnp.zeros((), jnp.int32), params, optimizer.init(moving), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), reference
    )


def slices_of(tree: Any, count: int) -> Any:
    """[B, ...] -> [count, B / count, ...]; every part on all devices, or the reshape would leave each to a few of them."""
    return jax.tree.map(lambda x: constrain_batch(x.reshape(count, x.shape[0] // count, *x.shape[1:]), axis=1), tree)


def summed(terms: Callable[[Any], Any], parts: Any) -> Any:
    """Sums what `terms` says of the parts of a batch, leaves [slices, ...], in their order."""
    if jax.tree.leaves(parts)[0].shape[0] == 1:
        return terms(jax.tree.map(lambda x: x[0], parts))
    add = partial(jax.tree.map, lambda a, b: a + b, is_leaf=lambda x: isinstance(x, Mean | Max))
    each = jax.lax.map(terms, parts)
    first, more = (jax.tree.map(lambda x, cut=cut: x[cut], each) for cut in (0, slice(1, None)))
    return jax.lax.scan(lambda total, part: (add(total, part), None), first, more)[0]


def accumulate(objective: Callable[[Params, Any], tuple[jax.Array, Any]], params: Params, parts: Any) -> tuple[Any, Params]:
    """objective(params, part) -> (number, terms); returns the sum of the terms over the parts, leaves [slices, ...], and the gradient of that of the
    numbers.

    The gradients of several parts are added up in place, layer by layer while the backward pass runs: there is one tree of them, not one of the sums
    and one of the part at hand.
    """
    if jax.tree.leaves(parts)[0].shape[0] == 1:
        (_, terms), grads = jax.value_and_grad(objective, has_aux=True)(params, jax.tree.map(lambda x: x[0], parts))
        return terms, grads
    sums = jax.tree.map(lambda x: jax.new_ref(jnp.zeros_like(x)), params)

    def one(part: Any) -> Any:
        number, backward, terms = jax.vjp(lambda params: objective(params, part), params, has_aux=True)
        backward.with_refs(sums)(jnp.ones_like(number))
        return terms

    return summed(one, parts), jax.tree.map(jax.freeze, sums)


@jax.named_scope("optimizer")
def apply_update(
    state: TrainState, grads: Params, cfg: ExperimentConfig, total: int, *, count: jax.Array | None = None, empty: jax.Array | bool = False
) -> tuple[TrainState, Metrics]:
    """One optimizer update by the gradients of what is trained (`split`); a non-finite gradient leaves everything but the counters as it was.

    count: the gradients are sums over so many. empty: nothing was counted in the loss. Then nothing moves, neither weights nor moments nor schedule,
    and nothing counts as skipped. Numbers that scale all gradients are put into one factor, and moments that stay are not selected but left alone:
    either would be a copy of the whole tree.
    """
    moving, frozen = split(state.params, cfg.optim, cfg.sft.stage)
    share = jnp.ones(()) if count is None else 1.0 / jnp.maximum(count, 1)
    norm = norm_in_float32(grads) * share
    finite = jnp.isfinite(norm)
    moves = finite & ~jnp.asarray(empty)
    factor = share * jnp.where(norm < cfg.optim.clip_norm, 1.0, cfg.optim.clip_norm / norm)

    def advanced(opt_state: optax.OptState) -> optax.OptState:
        scaled = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
        return make_optimizer(cfg.optim, moving).update(scaled, opt_state, moving)[1]

    opt_state = jax.lax.cond(moves, advanced, lambda opt_state: opt_state, state.opt_state)
    params = jax.tree.map(lambda new, old: jnp.where(moves, new, old), moved(moving, opt_state, cfg.optim, total), moving)
    state = state.replace(
        params=join(params, frozen),
        opt_state=opt_state,
        nonfinite=jnp.where(empty, state.nonfinite, jnp.where(finite, 0, state.nonfinite + 1)),
        skipped=state.skipped + jnp.where(finite | empty, 0, 1),
    )
    nothing = jnp.asarray(empty, jnp.float32)
    return state, {"grad/norm": Max(jnp.where(moves, norm, -jnp.inf)), "grad/empty": Mean(nothing, jnp.ones(()))}


def concluded(state: TrainState, cfg: ExperimentConfig, total: int) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after the updates of one more step, and what every kind of step says of it."""
    state = state.replace(step=state.step + 1)
    rate = last_rate(state.opt_state, cfg.optim, total)
    return state, {"optim/lr": rate, "grad/skipped": state.skipped, "grad/nonfinite": state.nonfinite}


def micro_count(size: int, microbatch: int) -> int:
    return size // microbatch if microbatch else 1
