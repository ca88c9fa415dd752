"""The numbers of the method against float64 NumPy: gradients of every log-prob path in bfloat16, masses far below the smallest float, and the mean of
the score. Breaks when something is right in exact arithmetic only."""

import argparse
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bag import Bag
from oracles import latent as oracle
from support import params, roll, tiny

from lgrpo.cli import selftest
from lgrpo.config.validate import validate
from lgrpo.latent.law import Step
from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gaussian import Gaussian
from lgrpo.latent.laws.gumbel import Gumbel
from lgrpo.latent.logprobs import BANNED, chunked_logps, token_logps
from lgrpo.latent.mixture import sample_latent
from lgrpo.latent.replay import replay_logps
from lgrpo.selftest import numerics
from lgrpo.selftest.numerics import chosen_at
from lgrpo.train.steps.rl import group
from lgrpo.types import PromptBatch

PROBS = (0.5, 0.9, 0.97, 0.99, 0.995, 0.999, 0.9999)
BANNED_ID, WIDTH = 3, 64


@functools.cache
def peaked(vocab):
    """(table bfloat16 [D,V], the same in float64, hidden bfloat16 [1,M,D], token int [M]). At position m its token has probability PROBS[m], at
    temperature 0.7 and without the likeliest other token, which is banned there."""
    rng = np.random.default_rng(vocab)
    table = jnp.asarray(rng.normal(size=(WIDTH, vocab)) / 8, jnp.bfloat16)
    token = rng.permutation(np.arange(10, vocab))[: len(PROBS)]
    table = table.at[:, BANNED_ID].set((table[:, token].mean(axis=1) * 2).astype(jnp.bfloat16))
    return table, np.asarray(table, np.float64), chosen_at(table, token, PROBS, temperature=0.7, banned_id=BANNED_ID)[None], token


def logit_moves(logits, ids, pull, rest_pull):
    """d(sum of pull * chosen + rest_pull * rest) / d logits in float64. logits [M,V] (tempered, banned), ids [M,K] distinct."""
    probs = np.exp(oracle.log_softmax(logits))
    outside = probs.copy()
    np.put_along_axis(outside, ids, 0.0, axis=-1)
    mass = outside.sum(-1, keepdims=True)
    out = -probs * (pull.sum(-1, keepdims=True) + rest_pull[:, None]) + rest_pull[:, None] * outside / np.where(mass > 0, mass, 1.0)
    np.put_along_axis(out, ids, np.take_along_axis(out, ids, -1) + pull, axis=-1)
    return out


@pytest.mark.parametrize("vocab", [3000, 128256])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("with_rest", [False, True])
def test_gradients_in_bfloat16_keep_two_digits(vocab, frozen, with_rest):
    """At most 1 % of the gradient's length at every position, for the chosen token alone and in a mixture with two unlikely ones."""
    table, wide, hidden, token = peaked(vocab)
    count = len(PROBS)
    temperature, banned = np.full((1, count), 0.7, np.float32), np.ones((1, count), bool)
    alone, mixture = token[:, None], np.stack([token, token * 0 + 5, token * 0 + 8], 1)
    for ids in (alone, mixture) if vocab < 10_000 else (mixture,):
        pull = np.where(np.arange(ids.shape[1]) == 0, 1.0, np.zeros((count, 1)))
        rest_pull = np.full(count, 1e-3 if with_rest else 0.0)

        def loss(h, t, ids=ids, pull=pull, rest_pull=rest_pull):
            settings = {"chunk": 4, "banned_id": BANNED_ID, "banned": banned, "with_rest": with_rest}
            out = chunked_logps({"unembed": t}, h, ids[None], temperature, **settings)
            return (out.chosen * pull).sum() + ((out.rest * rest_pull).sum() if with_rest else 0.0)

        got = jax.jit(jax.grad(loss, 0 if frozen else (0, 1)))(hidden, table)
        z = np.asarray(hidden[0], np.float64) @ wide
        z[:, BANNED_ID] = -np.inf
        moves = logit_moves(z / 0.7, ids, pull, rest_pull) / 0.7
        near(got if frozen else got[0], moves @ wide.T, 0.01)
        if not frozen:
            want = np.asarray(hidden[0], np.float64).T @ moves
            near(np.asarray(got[1][:, token], np.float64).T, want[:, token].T, 0.01)
            assert not np.asarray(got[1][:, BANNED_ID], np.float32).any()


def near(got, want, share):
    """Each row of `got` within `share` of the length of that of `want`."""
    got, want = (np.asarray(x, np.float64).reshape(-1, want.shape[-1]) for x in (got, want))
    error = np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)
    assert (error < share).all(), error.tolist()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_banned_token_has_no_gradient_even_among_the_ids(frozen):
    """Its logit is a constant there: no derivative in its log-prob reaches the hidden state or its column of the table."""
    table, wide, hidden, token = peaked(3000)
    ids = np.stack([token, token * 0 + BANNED_ID], 1)[None]

    def loss(h, t):
        out = chunked_logps(
            {"unembed": t}, h, ids, jnp.ones(ids.shape[:2]), chunk=4, banned_id=BANNED_ID, banned=jnp.ones(ids.shape[:2], bool)
        )
        return out.chosen[..., 1].sum()

    got = jax.jit(jax.grad(loss, 0 if frozen else (0, 1)))(hidden, table)
    z = np.asarray(hidden[0], np.float64) @ wide
    z[:, BANNED_ID] = -np.inf
    want = -np.exp(oracle.log_softmax(z)) @ wide.T
    near(got if frozen else got[0], want, 0.01)
    if not frozen:
        assert not np.asarray(got[1][:, BANNED_ID], np.float32).any() and np.asarray(got[1][:, token], np.float32).any()


def test_selftest_numerics_passes_here_and_sees_a_wrong_gradient(monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    selftest.add_options(parser)
    options = parser.parse_args(["numerics", "--dtype", "bfloat16", "--vocab", "3000"])
    assert selftest.run(options) == 0
    assert "bfloat16" in (out := capsys.readouterr().out) and out.splitlines()[-1].startswith("ok")

    def off(params, hidden, *args, **settings):  # values as they are, gradients 2 % too long
        return chunked_logps(params, 1.02 * hidden - jax.lax.stop_gradient(0.02 * hidden), *args, **settings)

    monkeypatch.setattr(numerics, "chunked_logps", off)
    assert selftest.run(options) == 1
    assert "FAILED" in (out := capsys.readouterr().out) and "too large" in out


# -- masses below the smallest float ------------------------------------------------------------------------------------------------------


FAR = [(0.5, 40.0), (0.2, 15.0), (0.1, 8.0), (0.5, 46.0), (0.1, 9.5), (0.05, 30.0)]
"""Noise scale, and the gap between the first token and all others: 75 to 600 nats in the units of the density. float32 ends at 87."""


def far_rows(scale, gap, rows=8, vocab=300, k=3):
    rng = np.random.default_rng(round(gap))
    logits = rng.normal(0, scale, (rows, vocab))
    logits[:, 4] = logits.max(1) + gap
    logits = logits.astype(np.float32)
    scores = oracle.log_softmax(logits) + scale * rng.gumbel(size=logits.shape)
    ids = np.argsort(-scores, axis=1)[:, :k]
    return logits, ids, np.take_along_axis(scores, ids, 1).astype(np.float32)


@pytest.mark.parametrize(("scale", "gap"), FAR)
def test_the_exact_density_sees_masses_below_the_smallest_float(scale, gap):
    logits, ids, scores = far_rows(scale, gap)
    cfg = tiny(rollout__latent__law=Exact()).rollout.latent
    identity = jnp.eye(logits.shape[1], dtype=jnp.float32)
    full = jnp.full(len(ids), scale, jnp.float32)

    def by_definition(z):
        return cfg.law.logp(cfg, Step(ids, scores, None), token_logps(z, ids, full, with_rest=True), full)

    def by_chunks(z):
        tokens = chunked_logps({"unembed": identity}, z[:, None], ids[:, None], full[:, None], chunk=4, with_rest=True)
        return cfg.law.logp(cfg, Step(ids[:, None], scores[:, None], None), tokens, full[:, None])[:, 0]

    want = [oracle.exact(z, i, u, scale) for z, i, u in zip(logits, ids, scores, strict=True)]
    rest = logits.astype(np.float64) / scale
    np.put_along_axis(rest, ids, -np.inf, axis=-1)
    for path in (by_definition, by_chunks):
        np.testing.assert_allclose(jax.jit(path)(logits), want, rtol=1e-5, atol=1e-6 * gap / scale)  # scores and logits are that large
        grad = np.asarray(jax.jit(jax.grad(lambda z, path=path: path(z).sum()))(logits))
        for row, column in itertools.product(range(3), [4, *ids[0, 1:], int(np.argmax(rest[0])), 17]):
            step = np.eye(logits.shape[1])[column] * 1e-4 * scale
            high, low = (oracle.exact(logits[row] + sign * step, ids[row], scores[row], scale) for sign in (1.0, -1.0))
            assert grad[row, column] * scale == pytest.approx((high - low) / 2e-4, abs=2e-4)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_a_rest_of_banned_tokens_is_no_rest(temperature):
    logits = jnp.zeros((1, 5)).at[:, 2].set(BANNED)
    scored = jax.jit(token_logps, static_argnames="with_rest")
    tokens = scored(logits, jnp.asarray([[0, 1, 3, 4]]), jnp.full(1, temperature), with_rest=True)
    assert tokens.rest == BANNED
    np.testing.assert_allclose(tokens.chosen, -np.log(4), rtol=1e-6)


# -- the mean of the score ------------------------------------------------------------------------------------------------------------------

SMALL = {"model__vocab_size": 8, "model__d_model": 8, "model__n_layers": 1, "model__d_ff": 8, "model__n_heads": 2, "model__n_kv_heads": 2}
SMALL |= {"rollout__group_size": 1024, "rollout__max_new_tokens": 4, "rollout__latent__k": 3, "rollout__latent__max_latent": 2}
SMALL |= {"rollout__latent__noise_scale": 0.6, "rollout__latent__min_latent": 1, "optim__freeze_embed": True}
LAWS = [
    Exact(),
    Gaussian(sigma=0.8),
    Bag(temperature=0.8),
    Gumbel(),
    Gumbel(density="sum", one_sided=False, clamp=None, top_p=1.0, end_rule="sampled"),
]
CHOICES = {
    "rollout__mode": ("latent", "explicit"),
    "rollout__latent__law": LAWS,
    "rollout__answer__sampler": ("sample", "gumbel_top1", "greedy"),
    "rollout__answer__temperature": (0.6, 1.3),
}


def admitted():
    """Every combination of CHOICES that claims to be unbiased (laws that say so, explicit chains) and that validation admits."""
    found = []
    for values in itertools.product(*CHOICES.values()):
        fields = dict(zip(CHOICES, values, strict=True))
        explicit = fields["rollout__mode"] == "explicit"
        claims = explicit if fields["rollout__latent__law"] is LAWS[-1] else fields["rollout__latent__law"].unbiased and not explicit
        if claims and not validate(tiny(**SMALL | fields), device_count=1, kind="train"):
            found.append(fields)
    return found


@functools.partial(jax.jit, static_argnames="cfg")
def logps_and_gradient(weights, batch, grouped, cfg):
    """Log-prob of every completion, [N], without what the policy did not choose; and the gradient of their mean."""

    def mean(weights):
        logps = jnp.where(grouped.loss_mask, replay_logps(weights, batch, grouped, cfg=cfg), 0.0).sum(-1).reshape(-1)
        return logps.mean(), logps

    (_, logps), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(weights)
    return logps, grads


def mean_score(cfg):
    """(mean, standard error) of the score, over 1024 completions of one prompt, in the direction in which it is largest over 1024 others."""
    weights = params(cfg.model)
    batch = PromptBatch(np.full((1, 5), 4, np.int32), np.ones((1, 5), bool), np.zeros(1, np.int32))
    first, second = (group(roll(cfg, batch, seed=seed), cfg.rollout.group_size) for seed in (1, 2))
    assert second.thought.any() and (second.is_latent.any() or cfg.rollout.mode == "explicit")
    _, along = logps_and_gradient(weights, batch, first, cfg=cfg)
    size = sum(float((x**2).sum()) for x in jax.tree.leaves(along)) ** 0.5
    moved = (jax.tree.map(lambda w, d, s=s: w + s * d / size, weights, along) for s in (0.01, -0.01))
    high, low = (np.asarray(logps_and_gradient(there, batch, second, cfg=cfg)[0], np.float64) for there in moved)
    scores = (high - low) / 0.02
    return scores.mean(), scores.std() / len(scores) ** 0.5


def test_every_admitted_combination_is_known():
    """Two ways to draw answers where they agree, and explicit chains."""
    cases = [(f["rollout__mode"], type(f["rollout__latent__law"]).__name__, f["rollout__answer__sampler"]) for f in admitted()]
    assert sorted(set(cases)) == [
        ("explicit", "Gumbel", "sample"),
        ("latent", "Bag", "sample"),
        ("latent", "Exact", "gumbel_top1"),
        ("latent", "Exact", "sample"),
        ("latent", "Gaussian", "sample"),
    ]
    assert len(cases) == 9  # at two temperatures, but for gumbel_top1, which needs that of the noise


@pytest.mark.parametrize(
    "case",
    [
        ("latent", "Exact", "sample"),
        ("latent", "Bag", "sample"),
        ("latent", "Exact", "gumbel_top1"),
        ("latent", "Gaussian", "sample"),
        ("explicit",),
    ],
)
def test_the_mean_score_is_zero_under_what_claims_to_be_unbiased(case):
    fields = next(
        f
        for f in admitted()
        if (f["rollout__mode"], type(f["rollout__latent__law"]).__name__, f["rollout__answer__sampler"])[: len(case)] == case
    )
    mean, error = mean_score(tiny(**SMALL | fields))
    assert abs(mean) < 4 * error


class EndsForCertain(Exact):
    """The exact density under the paper's end rule, which no setting of ours allows."""

    def draw(self, c, logits, keys, noise_scale, end):
        plain = {"one_sided": False, "clamp": None, "top_p": 1.0, "end_rule": "argmax"}
        return sample_latent(logits, keys, k=c.k, think_end_id=end, tau=c.tau, noise_scale=noise_scale, **plain)


def test_a_deterministic_end_biases_the_score():
    """So that the test above is known to have the power to see it."""
    more = {"rollout__latent__max_latent": 0, "rollout__latent__min_latent": 0, "rollout__latent__noise_scale": 1.0}
    mean, error = mean_score(tiny(**SMALL | {"rollout__latent__law": EndsForCertain()} | more))
    assert abs(mean) > 8 * error
