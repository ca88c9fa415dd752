"""One group-sampled rollout: prefill each prompt once, then decode all completions in a while loop until every row has finished.

Thinking in mixtures or in tokens is a state of the row (`thinking`, `is_latent`), carried through the loop; nothing is inferred from sentinels.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from lgrpo.config import ExperimentConfig, RolloutConfig
from lgrpo.config.reads import end_ids
from lgrpo.keys import row_keys
from lgrpo.latent.draw import block_masses
from lgrpo.latent.intervene import Intervention, Kind, replace_latents
from lgrpo.latent.law import Step
from lgrpo.latent.logprobs import ban, mixed_inputs, step_temperature, token_logps
from lgrpo.latent.mixture import LatentChoice
from lgrpo.latent.tokens import sample_token
from lgrpo.models.decoder import compute_params, decode_step, logits_of, prefill, with_unembedding
from lgrpo.models.kv_cache import GroupCache, cache_widths, close_part, make_cache
from lgrpo.types import Finish, Params, PromptBatch, Rollout


@struct.dataclass
class DecodeState:
    """Column t of every [N, T] buffer is final once step == t + 1. `embed` is the input that follows the newest column."""

    step: jax.Array  # int32 []; columns sampled so far
    embed: jax.Array  # [N, D]
    thinking: jax.Array  # bool [N]; the end of thinking has not come
    forced: jax.Array  # bool [N]; it came by force
    done: jax.Array  # bool [N]
    record: Rollout  # buffers [N, T, ...]
    cache: GroupCache


class _Step(NamedTuple):
    """What one step chose, per row."""

    ids: jax.Array  # int32 [N, K]
    scores: jax.Array  # float32 [N, K]
    weights: jax.Array  # float32 [N, K]
    is_latent: jax.Array  # bool [N]
    logp: jax.Array  # float32 [N]
    forced: jax.Array  # bool [N]


def _latent_choice(logits: jax.Array, keys: jax.Array, noise_scale: jax.Array, cfg: ExperimentConfig) -> LatentChoice:
    c = cfg.rollout.latent
    return c.law.draw(c, logits, keys, noise_scale, cfg.data.think_end_id)


def _answer_token(logits: jax.Array, keys: jax.Array, noise_scale: jax.Array, cfg: ExperimentConfig) -> jax.Array:
    if cfg.rollout.answer.sampler == "gumbel_top1":
        return _latent_choice(logits, keys, noise_scale, cfg).ids[:, 0]
    return sample_token(logits, keys, cfg.rollout.answer)


def _choose(
    logits: jax.Array,
    keys: jax.Array,
    thinking: jax.Array,
    step: jax.Array,
    noise_scale: jax.Array,
    table: jax.Array,
    cfg: ExperimentConfig,
) -> _Step:
    """Samples one step for every row. logits float32 [N,V], keys [N], thinking bool [N], noise_scale float32 [N], table: embeddings [V,D]."""
    c, end = cfg.rollout, cfg.data.think_end_id
    latent_row = thinking if c.mode == "latent" else jnp.zeros_like(thinking)
    if c.mode == "latent" and c.latent.min_latent:
        logits = ban(logits, end, latent_row & (step < c.latent.min_latent))
    token = jax.lax.cond(
        latent_row.all(),
        lambda: jnp.zeros(latent_row.shape, jnp.int32),  # nobody answers yet
        lambda: _answer_token(logits, keys, noise_scale, cfg).astype(jnp.int32),
    )
    one_hot = jnp.zeros((logits.shape[0], c.latent.k), jnp.float32).at[:, 0].set(1.0)
    # K-wide records also for explicit runs with K = 1: the columns beyond the first stay 0.
    plain_ids = jnp.zeros(one_hot.shape, jnp.int32).at[:, 0].set(token)
    if c.mode == "explicit":
        logp = token_logps(logits, token[:, None], jnp.full(token.shape, c.answer.temperature)).chosen[:, 0]
        return _Step(plain_ids, jnp.zeros_like(one_hot), one_hot, latent_row, logp, jnp.zeros_like(thinking))

    draw = functools.partial(_latent_choice, logits, keys, noise_scale, cfg)
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(draw))
    nobody = nothing.replace(ids=plain_ids, weights=one_hot)
    choice = jax.lax.cond(latent_row.any(), draw, lambda: nobody)
    forced = latent_row & (step >= c.latent.max_latent) if c.latent.max_latent else jnp.zeros_like(thinking)
    token = jnp.where(latent_row, choice.ids[:, 0], token)
    token = jnp.where(forced, end, token)
    is_latent = latent_row & (token != end)
    pick = is_latent[:, None]
    ids = jnp.where(pick, choice.ids, plain_ids.at[:, 0].set(token))
    scores = jnp.where(pick, choice.scores, 0.0)
    weights = jnp.where(pick, choice.weights, one_hot)
    scale = jnp.where(noise_scale > 0, noise_scale, 1.0)  # noise-free rows are not trained on; their density only has to be finite
    temperature = step_temperature(c, is_latent, latent_row & ~is_latent, scale)
    law, masses = c.latent.law, choice.masses
    if masses is not None:
        as_drawn = (temperature == scale).all() & latent_row.any()
        masses = jax.lax.cond(as_drawn, lambda: choice.masses, lambda: block_masses(logits, temperature[:, None]))
    logps = token_logps(logits, ids, temperature, with_rest=law.needs_rest, end=end if law.needs_end else None, masses=masses)
    latent = law.logp(c.latent, Step(ids, scores, weights), logps, scale, table=table)
    return _Step(ids, scores, weights, is_latent, jnp.where(is_latent, latent, logps.chosen[:, 0]), forced)


def _intervened(chosen: _Step, state: DecodeState, how: Intervention, end: int) -> _Step:
    """`chosen` with what an intervention feeds instead. Steps that it changes have no log-prob and no scores: they are not to be trained on."""
    rec, latent = state.record, chosen.is_latent[:, None]
    # Thinking starts at column 0, so that the first latent stands there as soon as there is a second one.
    first_ids = jnp.where(state.step == 0, chosen.ids, rec.ids[:, 0])
    first_weights = jnp.where(state.step == 0, chosen.weights, rec.weights[:, 0])
    ids, weights = replace_latents(how, state.step, chosen.ids, chosen.weights, first_ids, first_weights)
    cut = state.thinking & (how.kind == Kind.CUT) & (state.step >= how.steps) & (chosen.ids[:, 0] != end)
    ended_ids, ended_weights = (jnp.zeros_like(x).at[:, 0].set(value) for x, value in ((ids, end), (weights, 1.0)))
    ids = jnp.where(cut[:, None], ended_ids, jnp.where(latent, ids, chosen.ids))
    weights = jnp.where(cut[:, None], ended_weights, jnp.where(latent, weights, chosen.weights))
    touched = jnp.where(how.kind == Kind.CUT, cut, chosen.is_latent & (how.kind != Kind.NONE))
    return chosen._replace(
        ids=ids,
        scores=jnp.where(touched[:, None], 0.0, chosen.scores),
        weights=weights,
        is_latent=chosen.is_latent & ~cut,
        logp=jnp.where(touched, 0.0, chosen.logp),
        forced=chosen.forced | cut,
    )


class Decision(NamedTuple):
    """What a step records of each row (zero where the row was not live) and the row's new state."""

    columns: dict[str, jax.Array]  # by field of Rollout, [N, ...]
    embed: jax.Array  # [N, D]
    thinking: jax.Array  # bool [N]
    forced: jax.Array  # bool [N]
    done: jax.Array  # bool [N]
    finish: jax.Array  # int32 [N]
    chain: jax.Array  # bool [N]; the step belongs to the chain
    ended: jax.Array  # bool [N]; the step ended thinking


def settle(
    state: DecodeState,
    chosen: _Step,
    broken: jax.Array,
    finish: jax.Array,
    params: Params,
    noise_scale: jax.Array,
    cfg: ExperimentConfig,
) -> Decision:
    """The state machine of a row, given what it chose. broken: bool [N]; finish: int32 [N] so far."""
    step = Step(chosen.ids, chosen.scores, chosen.weights)
    token = chosen.ids[:, 0]
    live = ~state.done & ~broken
    ended = state.thinking & (token == cfg.data.think_end_id) & live
    forced = state.forced | (chosen.forced & live)
    eos = live & ~chosen.is_latent & functools.reduce(jnp.logical_or, [token == end for end in end_ids(cfg.data)])
    finish = jnp.where(eos, jnp.where(forced, Finish.FORCED_EXIT, Finish.EOS), finish)
    finish = jnp.where(broken & ~state.done, Finish.NAN, finish)
    columns = {
        "ids": chosen.ids,
        "scores": chosen.scores,
        "weights": chosen.weights,
        "is_latent": chosen.is_latent,
        "mask": live,
        "loss_mask": live & ~chosen.forced,
        "logps": chosen.logp,
    }
    columns = {name: jnp.where(live.reshape(live.shape + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x)) for name, x in columns.items()}
    return Decision(
        columns=columns,
        embed=jnp.where(live[:, None], mixed_inputs(params["embed"], step, noise_scale, cfg.rollout), 0.0),  # a broken row feeds nothing
        thinking=state.thinking & ~ended,
        forced=forced,
        done=state.done | eos | broken,
        finish=finish,
        chain=state.thinking & live & ~ended,
        ended=ended,
    )


@jax.named_scope("sample")
def choose_step(
    params: Params, hidden: jax.Array, keys: jax.Array, thinking: jax.Array, step: jax.Array, noise_scale: jax.Array, cfg: ExperimentConfig
) -> tuple[_Step, jax.Array]:
    """Samples from hidden [N,D] what follows it. step: int32 [] or [N]. Returns the choice and bool [N]: rows whose logits are not finite."""
    logits = logits_of(params, hidden)
    broken = ~jnp.isfinite(logits.sum(axis=-1))  # what a broken row chooses is never recorded
    steps = jnp.broadcast_to(step, thinking.shape)
    return _choose(logits, jax.vmap(jax.random.fold_in)(keys, steps), thinking, step, noise_scale, params["embed"], cfg), broken


def _sample(
    state: DecodeState,
    hidden: jax.Array,
    params: Params,
    keys: jax.Array,
    noise_scale: jax.Array,
    cfg: ExperimentConfig,
    intervention: Intervention | None,
) -> DecodeState:
    """Samples column `state.step` from hidden [N,D] and prepares the next input."""
    t, rec = state.step, state.record
    chosen, broken = choose_step(params, hidden, keys, state.thinking, t, noise_scale, cfg)
    if intervention is not None:
        chosen = _intervened(chosen, state, intervention, cfg.data.think_end_id)
    d = settle(state, chosen, broken, rec.finish, params, noise_scale, cfg)

    def put(buffer: jax.Array, value: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(buffer, value[:, None].astype(buffer.dtype), t, axis=1)

    record = rec.replace(
        **{name: put(getattr(rec, name), value) for name, value in d.columns.items()},
        finish=d.finish,
        chain_len=rec.chain_len + d.chain,
        thought=rec.thought | d.ended,
    )
    return state.replace(step=t + 1, embed=d.embed, thinking=d.thinking, forced=d.forced, done=d.done, record=record)


def empty_record(rows: int, cfg: RolloutConfig) -> Rollout:
    length, k = cfg.max_new_tokens, cfg.latent.k
    flags = jnp.zeros((rows, length), bool)
    return Rollout(
        ids=jnp.zeros((rows, length, k), jnp.int32),
        scores=jnp.zeros((rows, length, k), jnp.float32),
        weights=jnp.zeros((rows, length, k), jnp.float32),
        is_latent=flags,
        mask=flags,
        loss_mask=flags,
        logps=jnp.zeros((rows, length), jnp.float32),
        finish=jnp.full((rows,), Finish.RUNNING, jnp.int32),
        chain_len=jnp.zeros((rows,), jnp.int32),
        thought=jnp.zeros((rows,), bool),
    )


def decode_trips(longest: int, cfg: RolloutConfig) -> list[int]:
    """Trips of each part of `rollout`'s decode loop, which ends with its longest row, of `longest` steps."""
    length = cfg.max_new_tokens
    ends = [min(end + 1, length) for end in itertools.accumulate(cache_widths(length, cfg.cache_parts))]
    return [max(0, min(longest, end) - start) for start, end in zip([1, *ends[:-1]], ends, strict=True)]


def rollout(
    params: Params,
    prompts: PromptBatch,
    key: jax.Array,
    *,
    cfg: ExperimentConfig,
    noise_scale: jax.Array | None = None,
    first_sample: int = 0,
    intervention: Intervention | None = None,
) -> Rollout:
    """Samples cfg.rollout.group_size completions of every prompt.

    prompts [B, P]; key: one key, from which every (uid, sample, step) derives its own, so that a sample is the same alone or in any batch and on
    any mesh. noise_scale float32 [N] overrides the config per row (0: noise-free). Returns Rollout with N = B * G rows; prompt b has rows
    b*G .. b*G+G-1. intervention: what latent steps feed instead of the model's choice (evaluation only); ids and weights record what was fed.
    Source: DESIGN section 5.
    """
    c = cfg.rollout
    batch, group = prompts.tokens.shape[0], c.group_size
    rows = batch * group
    noise_scale = jnp.full((rows,), c.latent.noise_scale, jnp.float32) if noise_scale is None else noise_scale
    params = with_unembedding(compute_params(params, cfg.model))
    keys = row_keys(key, prompts.uid, group, first_sample)
    hidden, prompt_k, prompt_v = prefill(params, cfg.model, prompts.tokens, prompts.mask)
    widths = cache_widths(c.max_new_tokens, c.cache_parts)
    state = DecodeState(
        step=jnp.zeros((), jnp.int32),
        embed=jnp.zeros((rows, cfg.model.d_model), params["embed"].dtype),
        thinking=jnp.ones((rows,), bool),
        forced=jnp.zeros((rows,), bool),
        done=jnp.zeros((rows,), bool),
        record=empty_record(rows, c),
        cache=make_cache(cfg.model, prompt_k, prompt_v, prompts.mask, group, widths[0], c.kv_dtype),
    )
    state = _sample(state, jnp.repeat(hidden, group, axis=0), params, keys, noise_scale, cfg, intervention)

    def advance(state: DecodeState) -> DecodeState:
        embeds = state.embed.reshape(batch, group, -1)
        hidden, cache = decode_step(params, cfg.model, embeds, state.step - 1, state.cache)
        return _sample(state.replace(cache=cache), hidden.reshape(rows, -1), params, keys, noise_scale, cfg, intervention)

    for part, width in enumerate(widths):
        if part:
            state = state.replace(cache=close_part(state.cache, width))
        # A step writes column step - 1 of the cache. Parts after the end of the last row take no step.
        end = min(state.cache.start + width + 1, c.max_new_tokens)
        state = jax.lax.while_loop(lambda s, end=end: (s.step < end) & ~s.done.all(), advance, state)
    record = state.record
    return record.replace(finish=jnp.where(record.finish == Finish.RUNNING, Finish.LENGTH, record.finish))
