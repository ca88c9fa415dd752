"""The hand-written gradient of the chunked log-probs against automatic differentiation of the plain definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgrpo.latent.logprobs import BANNED, _compared, _put, ban, chunked_logps, token_logps
from lgrpo.models.decoder import logits_of

ROWS, LENGTH, WIDTH, VOCAB, K = 3, 5, 8, 300, 4
BANNED_ID = 7


def case(vocab=VOCAB, k=K, spread=1.0, seed=0):
    """Random table, hidden states, ids (repeated in some positions), temperatures and bans; and a weight for every output."""
    rng = np.random.default_rng(seed)
    hidden, table = rng.normal(size=(ROWS, LENGTH, WIDTH)) * spread, rng.normal(size=(WIDTH, vocab))
    ids = np.stack([rng.permutation(vocab)[:k] for _ in range(ROWS * LENGTH)]).reshape(ROWS, LENGTH, k)
    ids[0, 1] = [3] + [0] * (k - 1)  # a plain token's record: one id and zeros
    ids[1, 2, 0] = BANNED_ID
    banned = np.zeros((ROWS, LENGTH), bool)
    banned[2, :2] = True
    ids[2, :2] = np.where(ids[2, :2] == BANNED_ID, 8, ids[2, :2])
    temperature = rng.uniform(0.5, 1.5, (ROWS, LENGTH))
    weights = (rng.normal(size=ids.shape), rng.normal(size=ids.shape[:2]))
    as_float = [jnp.asarray(x, jnp.float32) for x in (hidden, table, temperature, *weights)]
    return *as_float[:2], jnp.asarray(ids), as_float[2], jnp.asarray(banned), as_float[3:]


def plain(hidden, table, ids, temperature, banned, with_rest):
    logits = logits_of({"unembed": table}, hidden)
    return token_logps(ban(logits, BANNED_ID, banned), ids, temperature, with_rest=with_rest)


def chunked(hidden, table, ids, temperature, banned, with_rest, chunk=6):
    return chunked_logps({"unembed": table}, hidden, ids, temperature, chunk=chunk, banned_id=BANNED_ID, banned=banned, with_rest=with_rest)


def loss_of(function, fixed, weights, with_rest):
    def loss(hidden, table):
        out = function(hidden, table, *fixed, with_rest)
        total = (jnp.tanh(out.chosen / 4) * weights[0]).sum()
        return total + (jnp.tanh(out.rest / 4) * weights[1]).sum() if with_rest else total

    return loss


@pytest.mark.parametrize("with_rest", [False, True])
@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_values_and_gradients_are_those_of_the_definition(with_rest, spread):
    hidden, table, *fixed, weights = case(spread=spread)
    ours, theirs = (loss_of(f, fixed, weights, with_rest) for f in (chunked, plain))
    np.testing.assert_allclose(jax.jit(ours)(hidden, table), jax.jit(theirs)(hidden, table), rtol=1e-5)
    wanted = jax.jit(jax.grad(theirs, (0, 1)))(hidden, table)
    for got in (
        jax.jit(jax.grad(ours, (0, 1)))(hidden, table),
        (jax.jit(jax.grad(ours, 0))(hidden, table), None),
    ):  # trained table, frozen table
        for x, y in zip(got, wanted, strict=True):
            if x is not None:
                np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5 * float(jnp.abs(y).max()))


def test_a_frozen_table_costs_two_products_over_the_vocabulary_and_no_gradient_of_its_size():
    hidden, table, *fixed, weights = case()
    frozen = str(jax.make_jaxpr(jax.grad(loss_of(chunked, fixed, weights, True), 0))(hidden, table))
    trained = str(jax.make_jaxpr(jax.grad(loss_of(chunked, fixed, weights, True), (0, 1)))(hidden, table))
    assert (frozen.count("dot_general["), trained.count("dot_general[")) == (2, 4)


def test_nothing_outside_the_mixture():
    """K = V: there is no rest, its log-prob is the constant BANNED and moves nothing."""
    hidden, table, *fixed, weights = case(vocab=K + 8, k=K + 8)
    ids = jnp.broadcast_to(jnp.arange(K + 8), fixed[0].shape)
    fixed = [ids, fixed[1], jnp.zeros_like(fixed[2])]
    assert (chunked(hidden, table, *fixed, True).rest == BANNED).all()
    for which in (0, (0, 1)):
        got = jax.jit(jax.grad(loss_of(chunked, fixed, weights, True), which))(hidden, table)
        wanted = jax.jit(jax.grad(loss_of(chunked, fixed, weights, False), which))(hidden, table)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), got, wanted)


@pytest.mark.parametrize("which", [0, (0, 1)])
def test_a_nearly_deterministic_row_has_a_finite_gradient(which):
    """All but 1e-40 of the mass on one token, inside the mixture: exp of the rest's reciprocal would overflow."""
    hidden, table, *fixed, weights = case()
    table = table.at[:, 3].set(0.0).at[0, 3].set(95.0)
    hidden = hidden.at[0, 1].set(0.0).at[0, 1, 0].set(1.0)
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss_of(chunked, fixed, weights, True), which))(hidden, table)):
        assert np.isfinite(np.asarray(leaf)).all()


@pytest.mark.parametrize("chunk", [1, 3, 9, 1000])
def test_the_chunk_changes_nothing(chunk):
    hidden, table, *fixed, weights = case()

    def grads(size):
        return jax.jit(jax.grad(loss_of(lambda *a: chunked(*a, chunk=size), fixed, weights, True), (0, 1)))(hidden, table)

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), grads(chunk), grads(6))


def test_bfloat16_stays_within_its_rounding():
    hidden, table, *fixed, weights = case()
    wanted = jax.jit(jax.grad(loss_of(chunked, fixed, weights, True), (0, 1)))(hidden, table)
    for which in (0, (0, 1)):
        got = jax.jit(jax.grad(loss_of(chunked, fixed, weights, True), which))(hidden.astype(jnp.bfloat16), table.astype(jnp.bfloat16))
        for x, y in zip(got if isinstance(which, tuple) else [got], wanted, strict=False):
            assert x.dtype == jnp.bfloat16
            assert float(jnp.abs(x.astype(jnp.float32) - y).max()) < 0.03 * float(jnp.abs(y).max())


def test_the_survey_has_values_and_no_gradient():
    """kth: the K-th largest log-prob; end: that of the banned id. With K = 1 a token's own log-prob is never below kth by rounding."""
    hidden, table, *fixed, _ = case()
    fixed[2] = jnp.zeros_like(fixed[2])
    logps = jax.nn.log_softmax(logits_of({"unembed": table}, hidden) / fixed[1][..., None], axis=-1)

    @jax.jit
    def found(hidden, ids):
        return chunked_logps({"unembed": table}, hidden, ids, fixed[1], chunk=6, banned_id=BANNED_ID, survey=True)

    out = found(hidden, fixed[0])
    np.testing.assert_allclose(out.kth, np.sort(logps, axis=-1)[..., -K], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.end, logps[..., BANNED_ID], rtol=1e-5, atol=1e-5)
    assert not jax.jit(jax.grad(lambda h: (found(h, fixed[0]).kth + found(h, fixed[0]).end).sum()))(hidden).any()
    best = found(hidden, jnp.argmax(logps, axis=-1)[..., None])
    np.testing.assert_array_equal(best.chosen[..., 0], best.kth)


def test_both_ways_to_leave_ids_out_are_one():
    x = jax.random.normal(jax.random.key(0), (5, 300))
    ids = jnp.array([[0, 299, 7], [7, 7, 7], [1, 2, 3], [299, 0, 299], [150, 151, 150]], jnp.int32)
    np.testing.assert_array_equal(_compared(x, ids), _put(x, ids, 0.0))
