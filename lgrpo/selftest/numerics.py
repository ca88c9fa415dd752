"""Gradients of the configured log-probs on this device, against float32 autodiff: python -m lgrpo selftest numerics.

The replay gap compares values and cannot see a wrong gradient. Here a few positions have a token of probability 0.5 to 0.9999, where the difference
of large numbers that a gradient is made of cancels; answer steps take that token, latent steps what the sampler draws there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lgrpo.config import ExperimentConfig
from lgrpo.latent.law import Step, TokenLogps
from lgrpo.latent.logprobs import chunked_logps, step_temperature
from lgrpo.latent.rollout import choose_step
from lgrpo.types import Array

PROBS = (0.5, 0.9, 0.97, 0.99, 0.999, 0.9999)
LIMIT = 0.01
"""Relative error of a gradient above which the test fails. bfloat16 rounds its inputs and results to 0.4 %."""
VOCAB = 32_000
"""Where the config leaves the vocabulary to the tokenizer."""


class Row(NamedTuple):
    """One position: what was chosen there, the likeliest token's probability at the temperature that it is scored at, |gradient - reference| / |reference|."""

    kind: str
    prob: float
    error: float


class _Steps(NamedTuple):
    """Recorded steps [M, ...]."""

    ids: Array
    scores: Array
    weights: Array
    is_latent: Array


def chosen_at(table: jax.Array, tokens: Array, probs: Sequence[float], temperature: float = 1.0, banned_id: int | None = None) -> jax.Array:
    """Hidden states [M,D] in the table's type under which tokens[m] has about probs[m]. table [D,V]. They point to the token's column."""
    wide = table.astype(jnp.float32)
    along = (wide[:, np.asarray(tokens)] - wide.mean(axis=1, keepdims=True)).T
    logits = np.asarray(jnp.matmul(along, wide, precision="highest"), np.float64) / temperature
    if banned_id is not None:
        logits[:, banned_id] = -np.inf
    gaps = logits - np.take_along_axis(logits, np.asarray(tokens)[:, None], axis=1)
    low, high = np.zeros((len(probs), 1)), np.full((len(probs), 1), 1e4)
    for _ in range(60):
        middle = (low + high) / 2
        below = 1 / np.exp(np.minimum(middle * gaps, 600.0)).sum(1, keepdims=True) < np.asarray(probs)[:, None]
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (jnp.asarray(high, jnp.float32) * along).astype(table.dtype)


def _plain(hidden: jax.Array, table: jax.Array, steps: _Steps, temperature: jax.Array, end: int) -> TokenLogps:
    """The definition in float32, for autodiff."""
    logits = jnp.matmul(hidden.astype(jnp.float32), table.astype(jnp.float32), precision="highest")
    logps = jax.nn.log_softmax(logits / temperature[:, None], axis=-1)
    others = logps.at[jnp.arange(len(logps))[:, None], steps.ids].set(-jnp.inf)
    return TokenLogps(jnp.take_along_axis(logps, steps.ids, axis=-1), jax.nn.logsumexp(others, axis=-1), end=logps[:, end])


def _gradients(
    tokens: Callable[..., TokenLogps],
    hidden: jax.Array,
    table: jax.Array,
    steps: _Steps,
    cfg: ExperimentConfig,
    frozen: bool,
) -> list[np.ndarray]:
    """Of the summed step log-probs, in the hidden states [M,D] and, unless it is frozen, the table [D,V]."""
    c, fixed = cfg.rollout.latent, table.T  # the embeddings are not what is tested: the same table, held fixed
    scale = jnp.full(len(steps.ids), c.noise_scale or 1.0, jnp.float32)
    temperature = step_temperature(cfg.rollout, steps.is_latent, jnp.zeros_like(steps.is_latent), scale)

    def total(hidden: jax.Array, table: jax.Array) -> jax.Array:
        found = tokens(hidden, table, steps, temperature, cfg.data.think_end_id)
        latent = c.law.logp(c, Step(steps.ids, steps.scores, steps.weights), found, scale, table=fixed)
        return jnp.where(steps.is_latent, latent, found.chosen[:, 0]).sum()

    out = jax.jit(jax.grad(total, (0,) if frozen else (0, 1)))(hidden, table)
    return [np.asarray(x, np.float64) for x in out]


def check(cfg: ExperimentConfig) -> list[Row]:
    """Every position's error, and with a trained output projection that of its gradient as a whole."""
    vocab, width = cfg.model.vocab_size or VOCAB, cfg.model.d_model
    dtype, frozen = jnp.dtype(cfg.model.dtype), cfg.optim.freeze_unembed
    table = (jax.random.normal(jax.random.key(0), (width, vocab)) / width**0.5).astype(dtype)
    likely = np.random.default_rng(0).permutation(np.arange(1, vocab))[: len(PROBS)].astype(np.int32)
    c, mode = cfg.rollout.latent, cfg.rollout.mode
    scale, answer = jnp.full(len(likely), c.noise_scale or 1.0), jnp.full(len(likely), cfg.rollout.answer.temperature)
    warm = [answer, c.law.temperatures(c, scale, answer)[0]][: 1 + (mode == "latent")]
    parts = [chosen_at(table, likely, PROBS, temperature=float(t[0])) for t in warm]
    one = np.zeros((len(likely), cfg.rollout.latent.k), np.float32)
    steps = _Steps(np.where(np.arange(one.shape[1]) == 0, likely[:, None], 0), one, one, np.zeros(len(likely), bool))
    if mode == "latent":
        keys, thinking = jax.random.split(jax.random.key(1), len(likely)), jnp.ones(len(likely), bool)
        drawn, _ = choose_step({"unembed": table, "embed": table.T}, parts[1], keys, thinking, jnp.asarray(1), scale, cfg)
        steps = jax.tree.map(lambda a, b: np.concatenate([a, b]), steps, _Steps(drawn.ids, drawn.scores, drawn.weights, drawn.is_latent))
    hidden, warm = jnp.concatenate(parts), np.concatenate(warm)[:, None]

    def chunked(hidden: jax.Array, table: jax.Array, steps: _Steps, temperature: jax.Array, end: int) -> TokenLogps:
        law = cfg.rollout.latent.law
        settings = {"chunk": cfg.train.logprob_chunk, "with_rest": law.needs_rest, "with_end": law.needs_end, "banned_id": end}
        out = chunked_logps({"unembed": table}, hidden[None], steps.ids[None], temperature[None], **settings)
        return jax.tree.map(lambda x: x[0], out)

    got = _gradients(chunked, hidden, table, steps, cfg, frozen)
    want = _gradients(_plain, hidden.astype(jnp.float32), table.astype(jnp.float32), steps, cfg, frozen)
    logits = np.asarray(jnp.matmul(hidden.astype(jnp.float32), table.astype(jnp.float32), precision="highest"), np.float64) / warm
    probs = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
    errors = np.linalg.norm(got[0] - want[0], axis=1) / np.linalg.norm(want[0], axis=1)
    kinds = ["latent" if latent else "token" for latent in steps.is_latent]
    rows = [Row(*row) for row in zip(kinds, probs.tolist(), errors.tolist(), strict=True)]
    if not frozen:
        rows.append(Row("table", float("nan"), float(np.linalg.norm(got[1] - want[1]) / np.linalg.norm(want[1]))))
    return rows


def run(cfg: ExperimentConfig) -> int:
    """Prints a table; exit code 0 when every gradient is within LIMIT, else 1."""
    rows = check(cfg)
    worst = max(row.error for row in rows)
    c, device = cfg.rollout.latent, jax.devices()[0]
    what = f"{type(c.law).__name__}, K = {c.k}" if cfg.rollout.mode == "latent" else "explicit"
    print(f"{what}, V = {cfg.model.vocab_size or VOCAB}, D = {cfg.model.d_model}, {cfg.model.dtype} on {device.device_kind}")
    print(f"{'step':8}{'p':>8}  error of the gradient")
    for row in rows:
        prob = "" if np.isnan(row.prob) else f"{row.prob:.4f}"
        print(f"{row.kind:8}{prob:>8}  {row.error:.2e}{'' if row.error < LIMIT else '  too large'}")
    good = worst < LIMIT  # False for NaN
    print(f"{'ok' if good else 'FAILED'}: largest error {worst:.2e}, limit {LIMIT}")
    return 0 if good else 1
