"""Support, noise, top-K, weights and embedding of a latent step. Breaks when what is sampled is no longer what the densities describe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import latent as oracle
from scipy import stats
from support import assert_rounding, chi_square, golden

from lgrpo.latent.mixture import embed_mixture, nucleus, sample_latent
from lgrpo.latent.noise import gumbel, shape_noise

G, M = golden("sampler"), golden("mixture")
END = int(G["end_id"])
KEY = jax.random.key(0)
STATIC = ("k", "think_end_id", "one_sided", "clamp", "delta", "order", "end_rule")
sample = jax.jit(sample_latent, static_argnames=STATIC)
UNCLAMPED = {"think_end_id": -1, "one_sided": False, "clamp": None, "top_p": 1.0, "end_rule": "sampled"}


@pytest.mark.parametrize("case", ["onesided", "twosided", "endid", "big", "noisefree"])
def test_golden(case):
    """The official per-batch switches become the row's noise scale: 0 where a row is not latent or its noise is off.

    On the rows where the official code overrides the noisy choice its scores stay noisy and no longer belong to the ids. Ours deliberately belong
    to the branch that was taken (log-probs of the noiseless top-K), and this is asserted too.
    """
    g = {name.removeprefix(f"{case}_"): value for name, value in G.items() if name.startswith(f"{case}_")}
    noisy = g["add_noise"] & g["latent_mode"]
    sides = np.unique(g["one_sided"])
    assert sides.size == 1  # a static switch of ours
    choice = sample(
        jnp.asarray(g["logits"]),
        KEY,
        k=int(g["K"]),
        think_end_id=END,
        top_p=float(g["top_p"]),
        tau=float(g["mixture_temperature"]),
        noise_scale=jnp.where(noisy, g["noise_scale"], 0.0),
        one_sided=bool(sides[0]),
        raw_noise=jnp.asarray(g["raw_gumbels"]),
    )
    taken = noisy & (g["logits"].argmax(-1) != END)
    np.testing.assert_array_equal(choice.noisy, taken)
    np.testing.assert_array_equal(choice.ids, g["topk_ids"])
    np.testing.assert_allclose(choice.weights, g["topk_probs"], atol=1e-5)
    assert_rounding(np.asarray(choice.scores)[taken], g["topk_scores"][taken])
    plain = np.take_along_axis(oracle.log_softmax(g["logits"]), g["topk_ids"], 1)
    assert_rounding(np.asarray(choice.scores)[~taken], plain[~taken])
    latent = g["latent_mode"]
    np.testing.assert_array_equal(np.asarray(choice.ids)[latent, 0], g["emitted_ids"][latent])


@pytest.mark.parametrize("case", ["a", "b"])
def test_golden_embedding(case):
    table, ids, probs = (M[f"{case}_{name}"] for name in ("table", "ids", "probs"))
    real, hard = ~M[f"{case}_is_partial"], M[f"{case}_is_hard"]
    # A hard row is its token with all the weight, as the rollout records answer steps; the other columns are never looked at.
    weights = np.where(hard[:, None], np.eye(ids.shape[1])[0], probs)
    ids = np.where(ids < 0, 0, ids)
    embed = jax.jit(embed_mixture)
    out = embed(table, ids, weights)
    np.testing.assert_allclose(out[real], M[f"{case}_out_f64"][real], atol=1e-5)
    half = embed(jnp.asarray(table, jnp.bfloat16), ids, weights)
    assert half.dtype == jnp.bfloat16
    # bfloat16 numbers of one sign are ordered like their bits
    bits = [np.asarray(x, np.float32)[real].view(np.int32) >> 16 for x in (half.astype(jnp.float32), M[f"{case}_out_bf16"])]
    close = np.abs(np.asarray(half, np.float32)[real] - M[f"{case}_out_bf16"][real]) < 1e-30
    assert np.all((np.abs(bits[0] - bits[1]) <= 1) | close)


def test_bfloat16_embedding_accumulates_in_float32():
    table = jnp.asarray([[1.0], [2.0**-9]], jnp.bfloat16)
    ids = jnp.asarray([[0, *[1] * 8]])
    # each of the eight addends would be rounded away by a bfloat16 accumulator
    assert embed_mixture(table, ids, jnp.ones((1, 9)))[0, 0] == 1 + 8 * 2.0**-9


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 16), min_size=24, max_size=24), st.integers(1, 64))
def test_nucleus_with_ties(counts, mass):
    """Multiples of a power of two, so that sums are exact and ties fall on the boundary."""
    probs = np.asarray(counts, np.float32) / 64
    got = jitted_nucleus(probs[None], jnp.asarray([mass / 64], jnp.float32))[0]
    np.testing.assert_array_equal(got, oracle.nucleus(probs, mass / 64))


jitted_nucleus = jax.jit(nucleus)


@pytest.mark.parametrize("top_p", [1e-9, 0.05, 0.5, 0.95, 0.999, 1.0])
def test_nucleus_of_logits(top_p):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (40, 200)) * np.repeat([0.1, 1, 3, 10], 10)[:, None]
    logits[::7, ::3] = -np.inf
    probs = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
    got, checked = np.asarray(jitted_nucleus(probs, top_p)), 0
    for row, mine in zip(probs, got, strict=True):
        ahead = np.concatenate([[0], np.cumsum(np.sort(row.astype(np.float64))[::-1])[:-1]])
        if top_p < 1 and np.abs(ahead[1:] - top_p).min() < min(1e-6, top_p / 2):
            continue  # the boundary lies within rounding of the sum
        want = oracle.nucleus(row, top_p)
        if top_p == 1.0:  # nothing of visible mass is lost, whatever the rounding of the sum
            assert row[~mine].sum() < 1e-5
        else:
            np.testing.assert_array_equal(mine, want)
        checked += 1
    assert checked > 30


def test_nucleus_special_rows():
    probs = np.array([[0.25] * 4, [0, 1, 0, 0], [0.5, 0.25, 0.25, 0], [0.25, 0.5, 0.125, 0.125]], np.float32)
    want = {
        0.5: [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]],
        0.75: [[1, 1, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]],
        1e-6: [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]],
    }
    for top_p, rows in want.items():
        np.testing.assert_array_equal(jitted_nucleus(probs, top_p), np.array(rows, bool), err_msg=str(top_p))


def test_clamp_atoms():
    """P(g < -1.5) = 1.13 %, P(g > 3) = 4.86 %: read from the recorded scores of mixtures over the whole vocabulary."""
    rows, vocab = 2048, 64
    choice = sample(jnp.zeros((rows, vocab)), KEY, k=vocab, think_end_id=-1, top_p=1.0)
    noise = np.asarray(choice.scores) + np.log(vocab)  # one-sided: atoms at 0 and 4.5
    draws = rows * vocab
    assert noise.min() > -1e-5 and noise.max() < 4.5 + 1e-5
    for count, want in (((noise < 1e-5).sum(), 0.01131), ((noise > 4.5 - 1e-5).sum(), 0.04857)):
        assert stats.binomtest(int(count), draws, want).pvalue > 1e-3
    raw = shape_noise(gumbel(jax.random.split(KEY, rows), vocab), clamp=None, one_sided=False, delta=0.0, scale=jnp.ones((rows, 1)))
    assert stats.kstest(np.asarray(raw).ravel(), "gumbel_r").pvalue > 1e-3


@pytest.mark.parametrize("delta", [0.0, 0.8])
def test_one_sidedness_moves_only_the_scores(delta):
    rng = np.random.default_rng(3)
    logits = jnp.asarray(rng.normal(0, 2, (64, 40)), jnp.float32)
    settings = {"k": 5, "think_end_id": 7, "tau": 0.8, "noise_scale": 0.5}
    two, one = sample(logits, KEY, one_sided=False, **settings), sample(logits, KEY, one_sided=True, delta=delta, **settings)
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_allclose(one.weights, two.weights, atol=2e-6)
    shift = np.where(np.asarray(one.noisy)[:, None], 0.5 * (1.5 + delta), 0)
    assert_rounding(np.asarray(one.scores) - np.asarray(two.scores), np.broadcast_to(shift, (64, 5)), size=10.0)
    logps = np.take_along_axis(oracle.log_softmax(logits), np.asarray(one.ids), 1)
    assert (np.asarray(one.scores) >= logps - 1e-5).all()


def test_rows_have_settings_of_their_own():
    rng = np.random.default_rng(4)
    logits = jnp.asarray(rng.normal(0, 2, (6, 30)), jnp.float32)
    keys = jax.random.split(KEY, 6)
    scale, tau, top_p = np.array([0, 0.3, 1, 1, 0.7, 2.0]), np.array([1, 0.5, 2, 1, 0.1, 1]), np.array([0.9, 0.5, 0.95, 0.2, 0.99, 0.7])
    together = sample(logits, keys, k=4, think_end_id=3, noise_scale=scale, tau=tau, top_p=top_p)
    assert np.asarray(together.noisy).tolist() == [s > 0 and row.argmax() != 3 for s, row in zip(scale, np.asarray(logits), strict=True)]
    for n in range(6):
        alone = sample(logits[n : n + 1], keys[n : n + 1], k=4, think_end_id=3, noise_scale=scale[n], tau=tau[n], top_p=top_p[n])
        for name in ("ids", "scores", "weights"):
            assert_rounding(getattr(together, name)[n], getattr(alone, name)[0], err_msg=f"{name} of row {n}")


def test_company_does_not_change_a_row():
    """A flat row needs noise on the whole vocabulary; a peaked one beside it must not notice."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1, (6, 1500)).astype(np.float32)
    logits[::2, :12] += 9
    keys = jax.random.split(jax.random.key(1), 6)
    sample = jax.jit(functools.partial(sample_latent, k=3, think_end_id=-1))
    together = sample(jnp.asarray(logits), keys)
    for row in range(6):
        alone = sample(jnp.asarray(logits[row : row + 1]), keys[row : row + 1])
        np.testing.assert_array_equal(together.ids[row], alone.ids[0], err_msg=f"row {row}")
        assert_rounding(together.scores[row], alone.scores[0])


def test_end_rule():
    """argmax: the end of thinking as the most likely token ends it for certain; sampled: only the noise decides."""
    logits = jnp.zeros((256, 10)).at[:, 3].set(1.0)
    forced = sample(logits, KEY, k=3, think_end_id=3)
    assert (forced.ids[:, 0] == 3).all() and not forced.noisy.any()
    free = sample(logits, KEY, k=3, think_end_id=3, end_rule="sampled")
    assert free.noisy.all() and 0.05 < (free.ids[:, 0] == 3).mean() < 0.6


def test_topk_then_perturb_only_picks_the_likeliest():
    rng = np.random.default_rng(5)
    logits = jnp.asarray(rng.normal(0, 0.3, (512, 30)), jnp.float32)
    choice = sample(logits, KEY, k=5, think_end_id=-1, order="topk_then_perturb", **{"one_sided": False, "clamp": None})
    best = np.sort(np.argsort(-np.asarray(logits), axis=1)[:, :5], axis=1)
    np.testing.assert_array_equal(np.sort(choice.ids, axis=1), best)
    assert (np.asarray(choice.ids)[:, 0] != np.asarray(logits).argmax(1)).mean() > 0.5  # and the noise does reorder them


def test_the_k_likeliest_stay_possible_outside_the_nucleus():
    """A peaked row has a nucleus of one token; the mixture still needs K."""
    logits = jnp.zeros((64, 12)).at[:, 4].set(20.0).at[:, 7].set(5.0).at[:, 9].set(4.0)
    choice = sample(logits, KEY, k=3, think_end_id=-1)
    np.testing.assert_array_equal(np.sort(choice.ids, axis=1), np.tile([4, 7, 9], (64, 1)))
    assert np.isfinite(choice.scores).all()


@functools.cache
def exact_draws(rows=40_000, scale=0.7):
    logits = np.array([1.0, -0.5, 0.2, 1.4, -1.0], np.float32)
    choice = sample(jnp.tile(logits, (rows, 1)), KEY, k=2, noise_scale=scale, **UNCLAMPED)
    return np.exp(oracle.log_softmax(logits / scale)), np.asarray(choice.ids), np.asarray(choice.scores) / scale


def test_law_of_unclamped_noise():
    """The first id is categorical in softmax(l/s); ordered sets are draws without replacement."""
    pi, ids, _ = exact_draws()
    assert chi_square(np.bincount(ids[:, 0], minlength=5), pi) > 1e-3
    sets = oracle.ordered_sets(pi, 2)
    counts = [((ids == pair).all(axis=1)).sum() for pair in sets]
    assert chi_square(counts, list(sets.values())) > 1e-3


def test_score_differences_follow_the_exact_density():
    """Given the ordered pair, y = exp(a_2 - a_1) has density proportional to (pi_1 y + 1 - pi_1)^-2: its distribution function is uniform."""
    pi, ids, a = exact_draws()
    first, y = pi[ids[:, 0]], np.exp(a[:, 1] - a[:, 0].astype(np.float64))
    uniform = (1 / (1 - first) - 1 / (1 - first + first * y)) / (1 / (1 - first) - 1)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


def test_k_outside_the_vocabulary_is_refused():
    for k in (0, 11):
        with pytest.raises(ValueError, match=r"k="):
            sample_latent(jnp.zeros((1, 10)), KEY, k=k, think_end_id=0)
