"""Fast selection must be exact, fast sampling must have the law of brute force, and no full-vocabulary sort may hide in the compiled step."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flags import LONG
from scipy import stats

from lgrpo.config import AnswerConfig
from lgrpo.latent import mixture
from lgrpo.latent.draw import block_masses, categorical, gumbel_top_k, leading, rest_mass, top_k
from lgrpo.latent.mixture import sample_latent
from lgrpo.latent.tokens import sample_token

DRAWS = 40_000


@pytest.mark.parametrize(("vocab", "k"), [(7, 3), (1000, 10), (4096, 10), (5003, 10), (32000, 4)])
@pytest.mark.parametrize("kind", ["random", "ties", "constant", "banned"])
def test_block_top_k_equals_lax(vocab, k, kind):
    rng = np.random.default_rng(vocab + k)
    x = rng.normal(size=(6, vocab)).astype(np.float32)
    x = {"random": x, "ties": np.round(x), "constant": np.zeros_like(x), "banned": np.where(rng.random(x.shape) < 0.999, -1e30, x)}[kind]
    values, ids = jax.jit(top_k, static_argnames="k")(x, k)
    expected_values, expected_ids = jax.lax.top_k(x, k)
    np.testing.assert_array_equal(values, expected_values)
    np.testing.assert_array_equal(ids, expected_ids)


LEADING = {
    "random": lambda x: x,
    "ties": np.round,
    "constant": np.zeros_like,
    "banned": lambda x: np.where(np.arange(x.shape[-1]) % 7 == 0, x, -np.inf),
    "nearly all banned": lambda x: np.where(np.arange(x.shape[-1]) % 997 == 0, x, -np.inf),
    "far apart": lambda x: x * 1e30,
}


@pytest.mark.parametrize(("vocab", "count"), [(100, 64), (5003, 64), (32000, 640)])
@pytest.mark.parametrize("kind", LEADING)
def test_leading_entries_are_all_those_above_what_is_left_out(vocab, count, kind):
    x = LEADING[kind](np.random.default_rng(vocab).normal(size=(5, vocab)).astype(np.float32))
    found = jax.jit(leading, static_argnames="count")
    values, ids, rest = map(np.asarray, found(x, count))
    for row, at, value, bound in zip(x, ids, values, rest[:, 0], strict=True):
        there = at < vocab
        np.testing.assert_array_equal(at[there], np.flatnonzero(row > bound))
        np.testing.assert_array_equal(value, np.where(there, row[np.minimum(at, vocab - 1)], -np.inf))
        outside = np.delete(row, at[there])
        assert bound == (outside.max() if outside.size else -np.inf)
        if kind == "random":
            assert there.sum() >= (vocab if vocab <= 8 * count else count * 15 // 16)
    alone = found(x[2:3], count)
    np.testing.assert_array_equal(alone.ids[0], ids[2], err_msg="a row depends on its neighbours")


@pytest.mark.parametrize("vocab", [5, 206, 1000])
def test_masses_do_not_cancel(vocab):
    """The mass outside a nearly deterministic choice, against float64."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(8, vocab)) * 8).astype(np.float32)
    logits[0, 0] = 60.0
    ids = np.argsort(-logits, axis=-1)[:, :4]

    @jax.jit
    def outside(logits):
        masses = block_masses(logits)
        return rest_mass(logits, masses, ids) + masses.highest[:, 0]

    got = outside(logits)
    others = logits.astype(np.float64)
    np.put_along_axis(others, ids, -np.inf, axis=-1)
    np.testing.assert_allclose(got, np.log(np.exp(others).sum(-1)), rtol=1e-5, atol=1e-5)


def many(fn, logits, seed, draws=DRAWS):
    """fn(logits [N,V], keys [N]) on `draws` copies of one row."""
    keys = jax.random.split(jax.random.key(seed), draws)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, len(logits)))
    program = jax.jit(fn, compiler_options=LONG if len(logits) > 100 else None)
    return jax.tree.map(np.asarray, program(rows, keys))


def chi_square(counts, probs):
    """p-value after pooling cells that expect fewer than 5."""
    expected = probs * counts.sum()
    small = expected < 5
    observed = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    assert observed[~keep].sum() == 0, "an impossible cell was drawn"
    return stats.chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue


@pytest.mark.parametrize("vocab", [3, 206, 700])
def test_categorical_has_the_law_of_softmax(vocab):
    logits = np.random.default_rng(1).normal(size=vocab) * 2
    logits[1] = -np.inf
    ids = many(categorical, logits, 2)
    probs = np.exp(logits) / np.exp(logits).sum()
    assert chi_square(np.bincount(ids, minlength=vocab), probs) > 1e-3


DISTRIBUTIONS = {
    "flat": np.zeros(12),
    "peaked": np.log(np.array([0.9, 0.05] + [0.005] * 10)),
    "spread": np.random.default_rng(3).normal(size=12) * 2,
    "wide": np.random.default_rng(4).normal(size=300),
    "deterministic": np.array([80.0, 0.0, -1.0, -2.0, -3.0, -40.0]),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("k", [1, 3, "V"])
def test_top_down_equals_brute_force(name, k):
    """Ids (chi-square on the ordered first two), scores and score gaps (Kolmogorov-Smirnov), mixture weights (moments)."""
    logits = DISTRIBUTIONS[name]
    vocab = len(logits)
    k = min(vocab, 12) if k == "V" else k

    def fast(x, keys):
        choice = sample_latent(x, keys, k=k, think_end_id=0, clamp=None, one_sided=False, top_p=1.0, end_rule="sampled")
        return choice.ids, choice.scores, choice.weights

    def brute(x, keys):
        raw = jax.vmap(lambda key: jax.random.gumbel(key, (vocab,)))(keys)
        scores, ids = jax.lax.top_k(jax.nn.log_softmax(x) + raw, k)
        return ids, scores, jax.nn.softmax(scores)

    (ids, scores, weights), (ids_b, scores_b, weights_b) = many(fast, logits, 5), many(brute, logits, 6)
    assert all(len(set(row)) == k for row in ids[:500]), "an id was drawn twice"
    pair = ids[:, 0] * vocab + ids[:, min(1, k - 1)]
    pair_b = ids_b[:, 0] * vocab + ids_b[:, min(1, k - 1)]
    table = np.stack([np.bincount(x, minlength=vocab * vocab) for x in (pair, pair_b)])
    table = table[:, table.sum(0) > 0]
    rare = table.sum(0) < 10
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], axis=1)
    table = table[:, table.sum(0) > 0]
    assert table.shape[1] == 1 or stats.chi2_contingency(table).pvalue > 1e-3
    for j in range(k):
        assert stats.ks_2samp(scores[:, j], scores_b[:, j]).pvalue > 1e-4
        assert stats.ks_2samp(scores[:, 0] - scores[:, j], scores_b[:, 0] - scores_b[:, j]).pvalue > 1e-4 or j == 0
    spread = weights.std(0) + weights_b.std(0)
    np.testing.assert_allclose(weights.mean(0), weights_b.mean(0), atol=5 * spread.max() / np.sqrt(DRAWS) + 1e-6)


def test_a_row_that_keeps_no_mass_is_drawn_all_the_same():
    """One token carries everything float32 can hold; the rest must still come in the right order of probability."""
    logits = np.array([200.0, 1.0, 0.0, -1.0])
    scores, ids = many(functools.partial(gumbel_top_k, k=2), logits, 1)
    assert (ids[:, 0] == 0).all()
    rest = np.exp([1.0, 0.0, -1.0])
    assert chi_square(np.bincount(ids[:, 1], minlength=4)[1:], rest / rest.sum()) > 1e-3
    # The largest of what is left is a Gumbel at the log of its mass.
    assert stats.kstest(scores[:, 1] - np.log(rest.sum()), "gumbel_r").pvalue > 1e-3


@pytest.mark.parametrize("gap", [57.0, 86.0, 87.5, 300.0])
def test_the_law_holds_where_the_remaining_mass_is_tiny(gap):
    """Ordered sets against draws without replacement in float64. What is left after the second draw depends on that draw: a rule that redraws rows
    by what is left (as there was, at 1e-25) conditions on it, and gave the likelier second token 0.44 for 0.65."""
    logits = np.array([0.0, -gap, -gap - 0.6, -gap - 40.0])
    scores, ids = many(functools.partial(gumbel_top_k, k=3), logits, 3)
    assert np.isfinite(scores).all() and (np.diff(scores) <= 0).all()
    assert (ids[:, 0] == 0).all() and (ids != 3).all()
    likelier = 1 / (1 + np.exp(-0.6))
    assert stats.binomtest(int((ids[:, 1] == 1).sum()), DRAWS, likelier).pvalue > 1e-3
    assert stats.kstest(scores[:, 1] + gap - np.log1p(np.exp(-0.6)), "gumbel_r").pvalue > 1e-3


def test_forbidden_tokens_come_last_and_once():
    logits = np.full(9, -np.inf)
    logits[[5, 7]] = [0.0, 2.0]
    scores, ids = many(functools.partial(gumbel_top_k, k=5), logits, 0, 64)
    assert (np.sort(ids[:, :2], axis=1) == [5, 7]).all() and (ids[:, 2:] == [0, 1, 2]).all()
    assert np.isfinite(scores[:, :2]).all() and (scores[:, 2:] == -np.inf).all()


def test_a_sharded_vocabulary_changes_nothing():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("tensor",))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tensor"))
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(16, 1024)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 16)
    scores, ids = jax.jit(gumbel_top_k, static_argnames="k")(logits, keys, 5)
    sharded_scores, sharded_ids = jax.jit(gumbel_top_k, static_argnames="k")(jax.device_put(logits, placed), keys, 5)
    np.testing.assert_array_equal(ids, sharded_ids)
    np.testing.assert_allclose(scores, sharded_scores, rtol=1e-5)
    for plain, sharded in zip(
        *(jax.jit(leading, static_argnames="count")(x, 20) for x in (logits, jax.device_put(logits, placed))), strict=True
    ):
        np.testing.assert_array_equal(plain, sharded)


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0, 12.0])
def test_candidates_have_the_law_of_full_noise(spread, monkeypatch):
    """Certified rows and rows that fall back, against the definition, on a vocabulary large enough for the shortcut."""
    monkeypatch.setattr(mixture, "_CANDIDATES", 64)
    logits = np.random.default_rng(7).normal(size=1200) * spread

    def fast(x, keys):
        choice = sample_latent(x, keys, k=2, think_end_id=0, end_rule="sampled")
        return choice.ids, choice.scores

    def brute(x, keys):
        choice = sample_latent(
            x, keys, k=2, think_end_id=0, end_rule="sampled", raw_noise=jax.vmap(lambda key: jax.random.gumbel(key, (1200,)))(keys)
        )
        return choice.ids, choice.scores

    (ids, scores), (ids_b, scores_b) = many(fast, logits, 8, 4000), many(brute, logits, 9, 4000)
    table = np.stack([np.bincount(x[:, 0], minlength=1200) for x in (ids, ids_b)])
    rare = table.sum(0) < 20
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], axis=1)
    table = table[:, table.sum(0) > 0]
    assert table.shape[1] == 1 or stats.chi2_contingency(table).pvalue > 1e-3
    for j in range(2):
        assert stats.ks_2samp(scores[:, j], scores_b[:, j]).pvalue > 1e-4


CANDIDATE_CASES = {
    "paper": {},
    "nucleus alone": {"clamp": None, "one_sided": False},
    "clamp alone": {"nucleus": False},
    "two-sided, scaled": {"one_sided": False, "scale": 0.4},
    "delta": {"delta": 0.7, "scale": 2.0},
    "small nucleus": {"top_p": 0.2},
    "top-k only": {"only_top_k": True, "clamp": None, "one_sided": False},
}


@pytest.mark.parametrize("name", CANDIDATE_CASES)
def test_a_certified_choice_does_not_depend_on_the_noise_elsewhere(name):
    """Candidates keep the noise they drew; whatever noise the other tokens get, high or low, the definition then chooses the same. Peaked rows, whose
    nucleus is one token, need the K likeliest all the same."""
    more = {"top_p": 0.95, "nucleus": True, "scale": 1.0, "one_sided": True, "clamp": (-1.5, 3.0), "delta": 0.0, "only_top_k": False}
    more |= CANDIDATE_CASES[name]
    rows, vocab, count = 64, 3000, 256
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(rows, vocab)) * np.repeat([0.1, 1.0, 3.0, 8.0], rows // 4)[:, None]
    logits[-4:, 11] = 200.0
    logits = jnp.asarray(logits, jnp.float32)
    column = {n: jnp.full((rows, 1), more.pop(n)) for n in ("top_p", "scale")}
    law = mixture._Noisy(k=4, **column, **more)
    lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    choose = jax.jit(lambda z, n, keys: mixture._choose_candidates(z, n, keys, law, count))
    scores, ids, sure, candidates, raw = choose(logits, lse, jax.random.split(jax.random.key(0), rows))
    assert sure[-4:].all() or not more["nucleus"]
    assert sure.sum() >= rows // 4
    for elsewhere in (-50.0, 50.0):
        noise = jnp.full((rows, vocab), elsewhere).at[jnp.arange(rows)[:, None], candidates].set(raw)
        full_scores, full_ids = mixture._choose_full(logits - lse, noise, law)
        np.testing.assert_array_equal(np.asarray(ids)[sure], np.asarray(full_ids)[sure])
        np.testing.assert_allclose(np.asarray(scores)[sure], np.asarray(full_scores)[sure], rtol=1e-5, atol=1e-5)
        assert np.isfinite(np.asarray(scores)[sure]).all()


def test_the_k_likeliest_stay_possible_outside_the_nucleus_of_a_large_vocabulary():
    logits = jnp.zeros((16, 3000)).at[:, 4].set(30.0).at[:, 7].set(5.0).at[:, 9].set(4.0)
    choice = jax.jit(lambda z: sample_latent(z, jax.random.key(0), k=3, think_end_id=-1))(logits)
    np.testing.assert_array_equal(np.sort(choice.ids, axis=1), np.tile([4, 7, 9], (16, 1)))
    assert np.isfinite(choice.scores).all()


VOCAB = 32000
STEPS = {
    "exact": lambda z, k: sample_latent(z, k, k=10, think_end_id=5, clamp=None, one_sided=False, top_p=1.0, end_rule="sampled"),
    "paper": lambda z, k: sample_latent(z, k, k=10, think_end_id=5),
    "token": lambda z, k: sample_token(z, k, AnswerConfig()),
    "truncated token": lambda z, k: sample_token(z, k, AnswerConfig(top_p=0.9, top_k=30)),
}


@pytest.mark.parametrize("name", STEPS)
def test_no_full_vocabulary_sort_in_the_compiled_step(name):
    shapes = jax.ShapeDtypeStruct((4, VOCAB), jnp.float32), jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    text = jax.jit(STEPS[name]).lower(*shapes).compile().as_text()
    sizes = [max(map(int, re.findall(r"\d+", shape.split("]")[0]))) for shape in re.findall(r"= \(?\w+\[([^=]*?) sort\(", text)]
    assert not [s for s in sizes if s >= VOCAB // 4], f"sorts over {sizes}"
