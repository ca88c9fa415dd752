"""Slot refill: the samples of `rollout`, at a cost that follows the work of all rows and not the longest of them.

Every group has a few lanes. A lane computes one sample after another: at the step after one has finished the next of the same group begins in its
place. So the prompt's keys stay stored once per group, a new sample needs no prefill (the prompt's last hidden state is at hand), and the swap is
part of the compiled step. Refilling across groups row by row would need a copy of the prompt for every row. What is left idle are groups that ended
early; between chunks the host drops them, halving the number of groups computed (shapes B, B/2, B/4, ...: one compilation each).

The cache is a ring over columns (`decode_step`): all lanes write the same column although they are at different positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lgrpo.config import ExperimentConfig
from lgrpo.keys import row_keys
from lgrpo.latent.rollout import choose_step, empty_record, settle
from lgrpo.models.decoder import compute_params, decode_step, prefill
from lgrpo.models.kv_cache import GroupCache, make_cache
from lgrpo.sharding import constrain
from lgrpo.types import Finish, Params, PromptBatch, Rollout


@struct.dataclass
class LaneState:
    """S groups with W lanes each. A lane without a sample left has sample == G and is done."""

    calls: jax.Array  # int32 []; decode steps so far, the ring's column
    following: jax.Array  # int32 [S]; first sample of the group that no lane has taken
    sample: jax.Array  # int32 [S, W]; which sample the lane computes
    step: jax.Array  # int32 [S, W]; columns of it sampled so far
    embed: jax.Array  # [S, W, D]; input that follows the newest column
    thinking: jax.Array  # bool [S, W]
    forced: jax.Array  # bool [S, W]
    done: jax.Array  # bool [S, W]; no sample left
    hidden: jax.Array  # [S, D]; of the prompt's last position
    keys: jax.Array  # keys [S, G]
    noise_scale: jax.Array  # float32 [S, G]
    record: Rollout  # leaves [S, G, ...]
    cache: GroupCache


@partial(jax.jit, static_argnames=("cfg",))
def _start(
    params: Params, prompts: PromptBatch, key: jax.Array, noise_scale: jax.Array, first_sample: jax.Array, *, cfg: ExperimentConfig
) -> LaneState:
    c = cfg.rollout
    batch, group = prompts.tokens.shape[0], c.group_size
    lanes = min(c.lanes, group)
    params = compute_params(params, cfg.model)
    hidden, prompt_k, prompt_v = prefill(params, cfg.model, prompts.tokens, prompts.mask)
    flags = jnp.zeros((batch, lanes), bool)
    return LaneState(
        calls=jnp.zeros((), jnp.int32),
        following=jnp.full((batch,), lanes, jnp.int32),
        sample=jnp.broadcast_to(jnp.arange(lanes, dtype=jnp.int32), flags.shape),
        step=jnp.zeros(flags.shape, jnp.int32),
        embed=jnp.zeros((*flags.shape, cfg.model.d_model), params["embed"].dtype),
        thinking=~flags,
        forced=flags,
        done=flags,
        hidden=hidden,
        keys=row_keys(key, prompts.uid, group, first_sample).reshape(batch, group),
        noise_scale=noise_scale.reshape(batch, group),
        record=jax.tree.map(lambda x: x.reshape(batch, group, *x.shape[1:]), empty_record(batch * group, c)),
        cache=make_cache(cfg.model, prompt_k, prompt_v, prompts.mask, lanes, c.max_new_tokens, c.kv_dtype),
    )


def _advance(state: LaneState, params: Params, cfg: ExperimentConfig) -> LaneState:
    """One step of every lane; lanes whose sample has ended take the group's next one."""
    shape, rows, group = state.sample.shape, state.sample.size, cfg.rollout.group_size
    # A lane at step 0 has nothing to feed: it samples from the prompt's hidden state. What this call computes for it is never looked at again.
    begins = state.step == 0
    position = jnp.maximum(state.step - 1, 0)
    hidden, cache = decode_step(params, cfg.model, state.embed, position, state.cache, state.calls)
    hidden = jnp.where(begins[..., None], state.hidden[:, None], hidden).reshape(rows, -1)
    flat = jax.tree.map(lambda x: x.reshape(rows), {n: getattr(state, n) for n in ("thinking", "forced", "done", "step")})
    known = jnp.minimum(state.sample, group - 1)
    slots = jnp.arange(shape[0])[:, None]
    keys, noise = state.keys[slots, known].reshape(rows), state.noise_scale[slots, known].reshape(rows)
    chosen, broken = choose_step(params, hidden, keys, flat["thinking"], flat["step"], noise, cfg)
    view = state.replace(**{n: flat[n] for n in ("thinking", "forced", "done")})
    d = settle(view, chosen, broken, jnp.full((rows,), Finish.RUNNING, jnp.int32), params, noise, cfg)

    lanes = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), d._asdict())
    rec, sample, live = state.record, state.sample, ~state.done
    # vmap: the group axis is a batch axis of the scatter, so that it stays sharded. Index G (a lane without a sample) is dropped.
    write = jax.vmap(lambda buffer, g, t, x: buffer.at[g, t].set(x.astype(buffer.dtype), mode="drop"))
    add = jax.vmap(lambda buffer, g, x: buffer.at[g].add(x.astype(buffer.dtype), mode="drop"))
    step = state.step + live
    ended = live & (lanes["done"] | (step == cfg.rollout.max_new_tokens))
    finish = jnp.where(ended & (lanes["finish"] == Finish.RUNNING), Finish.LENGTH, lanes["finish"])
    record = rec.replace(
        **{name: write(getattr(rec, name), sample, state.step, x) for name, x in lanes["columns"].items()},
        finish=jax.vmap(lambda buffer, g, x: buffer.at[g].set(x, mode="drop"))(rec.finish, sample, finish),
        chain_len=add(rec.chain_len, sample, lanes["chain"]),
        thought=jax.vmap(lambda buffer, g, x: buffer.at[g].max(x, mode="drop"))(rec.thought, sample, lanes["ended"]),
    )
    taken = state.following[:, None] + jnp.cumsum(ended, axis=1) - 1
    sample = jnp.where(ended, jnp.minimum(taken, group), sample).astype(jnp.int32)
    return state.replace(
        calls=state.calls + 1,
        following=jnp.minimum(state.following + ended.sum(1, dtype=jnp.int32), group),
        sample=sample,
        step=jnp.where(ended, 0, step),
        embed=lanes["embed"].astype(state.embed.dtype),
        thinking=lanes["thinking"] | ended,
        forced=lanes["forced"] & ~ended,
        done=sample >= group,
        record=record,
        cache=cache,
    )


@partial(jax.jit, static_argnames=("cfg",), donate_argnames=("state",))
def _chunk(params: Params, state: LaneState, *, cfg: ExperimentConfig) -> tuple[LaneState, jax.Array]:
    """Up to cfg.rollout.chunk steps. Returns the state and bool [S], on every device: groups with all samples finished."""
    params = compute_params(params, cfg.model)
    last = state.calls + cfg.rollout.chunk
    state = jax.lax.while_loop(lambda s: (s.calls < last) & ~s.done.all(), lambda s: _advance(s, params, cfg), state)
    return state, constrain(state.done.all(axis=1))


def lower_chunk(params: Params, prompts: PromptBatch, key: jax.Array, *, cfg: ExperimentConfig) -> Any:
    """The chunk's program for abstract arguments with shardings, as jax.stages.Lowered: for its memory."""
    scale = jax.ShapeDtypeStruct((prompts.tokens.shape[0] * cfg.rollout.group_size,), jnp.float32, sharding=prompts.uid.sharding)
    first = jax.ShapeDtypeStruct((), jnp.int32)
    compiled = _start.lower(params, prompts, key, scale, first, cfg=cfg).compile()
    state = jax.eval_shape(lambda *a: _start(*a, cfg=cfg), params, prompts, key, scale, first)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, compiled.output_shardings)
    return _chunk.lower(params, state, cfg=cfg)


def _groups(state: LaneState, rows: jax.Array) -> LaneState:
    """The state of the groups `rows`."""
    cache = state.cache
    along = {n: getattr(cache, n)[:, rows] for n in ("prompt_k", "prompt_v", "k", "v")}
    cache = cache.replace(**along, prompt_mask=cache.prompt_mask[rows], prompt_len=cache.prompt_len[rows])
    rest = {n: jax.tree.map(lambda x: x[rows], getattr(state, n)) for n in LaneState.__dataclass_fields__ if n not in ("calls", "cache")}
    return state.replace(**rest, cache=cache)


@jax.jit
def _collect(out: Rollout, record: Rollout, pool: jax.Array) -> Rollout:
    """out leaves [B, ...] with `record` at the groups `pool`."""
    return jax.tree.map(lambda o, r: o.at[pool].set(r), out, record)


_shrink = jax.jit(_groups)


def refill_rollout(
    params: Params,
    prompts: PromptBatch,
    key: jax.Array,
    *,
    cfg: ExperimentConfig,
    noise_scale: jax.Array | None = None,
    first_sample: int = 0,
    interrupted: Callable[[], bool] = lambda: False,
    ways: int = 1,
) -> Rollout | None:
    """The Rollout of `rollout` for the same arguments, by slot refill. Runs on the host and calls compiled chunks.

    interrupted: asked between chunks; where it says yes the result is None. On several hosts all of them must give the same answer.
    ways: devices that share the batch; the number of groups stays a multiple of it.
    """
    batch, group = prompts.tokens.shape[0], cfg.rollout.group_size
    scale = jnp.full((batch * group,), cfg.rollout.latent.noise_scale, jnp.float32) if noise_scale is None else jnp.asarray(noise_scale)
    state = _start(params, prompts, key, scale, jnp.asarray(first_sample, jnp.int32), cfg=cfg)
    pool, out = np.arange(batch), None  # pool: which group each slot holds
    while True:
        state, finished = _chunk(params, state, cfg=cfg)
        busy = np.flatnonzero(~np.asarray(finished))
        if not busy.size:
            break
        if interrupted():
            return None
        size = len(pool)
        while size % (2 * ways) == 0 and busy.size <= size // 2:
            size //= 2
        if size < len(pool):
            out = state.record if out is None else _collect(out, state.record, pool)
            # Filled up with finished groups: they stay as they are.
            keep = np.concatenate([busy, np.flatnonzero(np.asarray(finished))])[:size]
            pool, state = pool[keep], _shrink(state, keep)
    out = state.record if out is None else _collect(out, state.record, pool)
    return jax.tree.map(lambda x: x.reshape(batch * group, *x.shape[2:]), out)
