"""Each diagnostic on a case made by hand, whose value is known. Breaks when a metric means something else than docs/diagnostics.md says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import replay as oracle
from oracles.latent import log_softmax
from support import END, assert_rounding, change, fresh_state, params, prompts, roll, tiny, train_batch

from lgrpo.algos import diagnostics as d
from lgrpo.config import ExperimentConfig, LatentConfig
from lgrpo.latent.law import Step
from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gumbel import Gumbel
from lgrpo.latent.logprobs import TokenLogps, chunked_logps, token_logps
from lgrpo.runs import metrics as registry
from lgrpo.train.steps.rl import group, train_step, winner_step

GUMBEL = LatentConfig(k=2)
slopes = jax.jit(d.slopes, static_argnums=0)


def values(found):
    return {name.removeprefix("diag/"): float(x.value()) for name, x in found.items()}


def grid(*rows):
    return jnp.asarray(rows, jnp.float32)[None]


def test_mixture_state_of_one_token_and_of_four_equal_ones():
    weights = grid([1, 0, 0, 0], [0.25] * 4, [0.7, 0.1, 0.1, 0.1])
    found = values(d.mixture_state(weights, jnp.asarray([[True, True, False]])))
    assert found == pytest.approx({"entropy": np.log(4) / 2, "effective_support": 2.5, "max_weight": 0.625})


def test_mass_outside_the_top_k_counts_ties_as_inside():
    weights, logps = grid([0.6, 0.3, 0.1], [0.5, 0.3, 0.2]), grid([-1, -3, -4], [-1, -2, -2])
    assert float(d.outside_top_k(weights, logps, grid([-2, -2])[0], jnp.ones((1, 2), bool)).value()) == pytest.approx(0.2)  # (0.4 + 0) / 2


@pytest.mark.parametrize(
    ("latent", "expected"),
    [
        (LatentConfig(noise_scale=2.0), 0.75),  # (-0.5 + 2) / 2
        (LatentConfig(noise_scale=2.0, law=Gumbel(density_scale="unit")), 1.5),
        (LatentConfig(noise_scale=2.0, law=Exact()), 1.75),  # -0.5 / 2 + 2
    ],
)
def test_margins_are_in_the_units_of_the_density(latent, expected):
    assert float(latent.law.margins(latent, Step(None, jnp.float32(-0.5), None), jnp.float32(-2.0))) == pytest.approx(expected)


def test_histogram_of_margins_adds_up_and_forgives_rounding_at_an_edge():
    found = values(d.margin_histogram(grid([-5, -1e-6, 0.5, 99], [7, 7, 7, 7]), jnp.asarray([[True, False]])))
    assert {name: x for name, x in found.items() if x} == {
        "margin_hist_below_-2": 0.25,
        "margin_hist_0_to_1": 0.5,
        "margin_hist_from_5": 0.25,
    }


@pytest.mark.parametrize("one_sided", [True, False])
def test_clamp_atoms_under_both_kinds_of_noise(one_sided):
    latent = LatentConfig(law=Gumbel(one_sided=one_sided, delta=0.5 if one_sided else 0.0), noise_scale=2.0)
    logps = grid([-1, -2, -3, -4])
    noise = np.array([-1.5, -1.5, 3.0, 0.0]) + (2.0 if one_sided else 0.0)
    found = values(d.clamp_atoms(latent, logps + 2.0 * noise, logps, jnp.ones((1, 1), bool)))
    assert found == {"clamp_low": 0.5, "clamp_high": 0.25}
    assert d.clamp_atoms(LatentConfig(law=Gumbel(clamp=None, one_sided=False)), logps, logps, jnp.ones((1, 1), bool)) == {}


def test_slopes_are_the_closed_forms():
    scores, logps, weights = grid([-0.5, -2.5]), grid([-1.0, -2.0]), grid([0.9, 0.1])
    tokens, a = TokenLogps(logps, jnp.asarray([[-0.7]])), jnp.asarray([[-1.0]])
    step = Step(jnp.zeros((1, 1, 2), int), scores, weights)
    x = np.array([0.5, -0.5])
    plain = 1 - np.exp(-x)
    for latent, expected in (
        (GUMBEL, plain / 2),
        (change(GUMBEL, law__density="weighted"), plain * [0.9, 0.1]),
        (change(GUMBEL, law__score_gradient="bounded"), [plain[0] / 2, (np.exp(-0.5) - 1) / 2]),
        (change(GUMBEL, law__score_gradient="aligned"), [plain[0] / 2, (1 - np.exp(-0.5)) / 2]),
    ):
        np.testing.assert_allclose(slopes(latent, step, tokens, a)[0, 0], expected, rtol=1e-5)
    exact = change(GUMBEL, law=Exact())
    inside = np.exp(np.array([-1.0, -2.0]) - np.array([-0.5, -2.5]))
    mass = inside.sum() + np.exp(2.5) * np.exp(-0.7)
    np.testing.assert_allclose(slopes(exact, step, tokens, a)[0, 0], 1 - 2 * inside / mass, rtol=1e-5)


def test_misaligned_components_by_share_mass_and_sign():
    slope = grid([0.5, -0.5], [-0.5, -0.5], [0.5, 0.5], [-0.5, -0.5])
    weights = grid([0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.5, 0.5])
    found = values(d.misalignment(slope, weights, jnp.asarray([[1.0, -1.0, -1.0, 0.0]]), jnp.ones((1, 4), bool)))
    assert found == pytest.approx(
        {"misaligned_share": 0.5, "misaligned_mass": 1.1 / 3, "misaligned_share_good": 0.5, "misaligned_share_bad": 0.5}
    )


def test_score_gradient_rate_needs_both_signs():
    margin, a = grid([-1, 1], [-1, -1], [-1, -1]), jnp.asarray([[-1.0, 1.0, 0.0]])
    assert float(d.trigger_rate(margin, a, jnp.ones((1, 3), bool)).value()) == 0.5


def test_gradient_norms_by_type_add_up_in_squares():
    gradient, mask = jnp.asarray([[3.0, 4.0, 1.0, 9.0]]), jnp.asarray([[True, True, True, False]])
    types = {
        name: jnp.asarray([[i == j or (name == "answer" and j == 3) for j in range(4)]])
        for i, name in enumerate(("latent", "exit", "answer"))
    }
    one = d.gradient_norms(gradient, grid([0.6, 0.8], [5, 5], [5, 5], [5, 5]) / 2, types, mask)
    expected = {"gradient_latent": 3.0, "gradient_exit": 4.0, "gradient_answer": 1.0, "gradient_latent_components": 1.5}
    assert values(one) == pytest.approx({name: x / np.sqrt(3) for name, x in expected.items()})
    two = {name: one[name] + one[name] for name in one}  # two equal micro-batches are one
    assert values(two) == pytest.approx(values(one))


def test_winners_of_hand_made_groups():
    record = group(roll(tiny(), prompts(2)), 4)
    shape = record.mask.shape
    lengths = np.array([[3, 5, 8, 8], [8, 8, 8, 8]])  # the winner is the shortest
    record = record.replace(
        mask=np.arange(shape[-1]) < lengths[..., None],
        is_latent=np.broadcast_to(np.arange(shape[-1]) < 2, shape),
        logps=np.zeros(shape, np.float32),
    )
    rewards = np.array([[1, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    found = winner_step(record, rewards, rewards >= 0, cfg=ExperimentConfig())
    assert {name: float(x) for name, x in found.items()} == pytest.approx({"diag/winner_share": 0.5, "diag/winner_latent_share": 2 / 3})


def test_the_survey_of_the_vocabulary_is_that_of_all_logits():
    rng = np.random.default_rng(0)
    hidden, table = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 5, 8), (8, 300)))
    ids, temperature = jnp.asarray(rng.integers(0, 300, (2, 5, 4))), jnp.full((2, 5), 0.7)

    def run(hidden, survey):
        out = chunked_logps({"unembed": table}, hidden, ids, temperature, chunk=4, banned_id=7, with_rest=True, survey=survey)
        return out.chosen.sum() + out.rest.sum(), out

    graded = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)
    (_, found), grad = graded(hidden, True)
    vocabulary = np.broadcast_to(np.arange(300), (2, 5, 300))
    everything = np.asarray(jax.jit(token_logps)(hidden @ table, vocabulary, temperature).chosen)
    assert_rounding(found.kth, np.sort(everything)[..., -4])
    assert_rounding(found.end, everything[..., 7])
    assert_rounding(grad, graded(hidden, False)[1])  # two programs


def run_step(cfg):
    _, found = train_step(fresh_state(cfg), train_batch(cfg), cfg=cfg)
    return {name: float(x) for name, x in found.items()}


def by_hand(cfg):
    """Diagnostics of the batch of `run_step`, from float64 logits of the recorded completions."""
    batch = train_batch(cfg)
    record, one = jax.device_get(batch.rollout), prompts()
    components, ends, exits = [], [], []
    for b, g in np.ndindex(record.mask.shape[:2]):
        own = jax.tree.map(lambda x, at=(b, g): x[at], record)
        logps = log_softmax(oracle.step_logits(params(cfg.model), cfg, one.tokens[b][one.mask[b]], own))
        for t in np.flatnonzero(own.is_latent):
            components.append((own.scores[t], logps[t][own.ids[t]], own.weights[t], np.sort(logps[t])[-own.ids.shape[-1]]))
            ends.append(np.exp(logps[t, END]))
        if own.thought and batch.loss_mask[b, g, own.chain_len]:
            exits.append(np.exp(oracle.logps(params(cfg.model), cfg, one.tokens[b][one.mask[b]], own)[own.chain_len]))
    scores, chosen, weights, kth = (np.array(x, np.float64) for x in zip(*components, strict=True))
    noise = scores - chosen
    entropy = -(weights * np.log(weights)).sum(-1)
    bins = np.histogram(noise + d.TOLERANCE, [-np.inf, *d.EDGES, np.inf])[0] / noise.size
    low, high = cfg.rollout.latent.law.atoms(cfg.rollout.latent)
    return {
        "entropy": entropy.mean(),
        "effective_support": np.exp(entropy).mean(),
        "max_weight": weights.max(-1).mean(),
        "clamp_low": (np.abs(noise - low) < d.TOLERANCE).mean(),
        "clamp_high": (np.abs(noise - high) < d.TOLERANCE).mean(),
        "outside_top_k": np.where(chosen < kth[:, None] - 1e-6, weights, 0).sum(-1).mean(),
        "end_probability": np.mean(ends),
        "end_probability_max": np.max(ends),
        "exit_probability": np.mean(exits),
    } | {f"margin_hist_{name}": share for name, share in zip(d.BINS, bins, strict=True)}


@pytest.mark.parametrize("one_sided", [True, False])
def test_a_step_reports_them_and_changes_nothing_else(one_sided):
    cfg = tiny(model__n_layers=1, rollout__max_new_tokens=6, train__microbatch=2, rollout__latent__law__one_sided=one_sided)
    off, full = run_step(change(cfg, train__diagnostics="off")), run_step(cfg)
    assert_rounding({name: full[name] for name in off}, off, size=1.0)  # two programs
    more = {name: x for name, x in full.items() if name not in off}
    registry.check_names(more)
    assert all(name.startswith("diag/") and np.isfinite(x) for name, x in more.items())
    expected = by_hand(cfg)
    assert {name: more[f"diag/{name}"] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert expected["clamp_low"] > 0 and expected["outside_top_k"] > 0 and 0 < expected["exit_probability"] < 1
    # One-sided noise is for this: no component is moved against the advantage.
    assert (more["diag/misaligned_share"] > 0.1, more["diag/score_gradient_rate"] > 0) == (not one_sided, not one_sided)


def test_every_bin_is_declared_and_explicit_runs_have_no_latent_metrics():
    assert {f"diag/margin_hist_{name}" for name in d.BINS} == {name for name in registry.METRICS if "margin_hist" in name}
    found = run_step(tiny(model__n_layers=1, rollout__max_new_tokens=6, rollout__mode="explicit", rollout__latent__k=1))
    assert {name for name in found if name.startswith("diag/")} == {"diag/gradient_exit", "diag/gradient_answer"}


def test_the_gradient_of_the_exit_is_that_of_its_position_alone():
    """An advantage at one row's first position after its latents moves that type of position, and no other."""
    cfg = tiny(model__n_layers=1, rollout__max_new_tokens=6, rollout__latent__max_latent=3, algo__invalid="keep")
    batch = train_batch(cfg)
    record = batch.rollout
    row = next(tuple(at) for at in np.argwhere(np.asarray(record.thought)) if batch.loss_mask[(*at, record.chain_len[tuple(at)])])
    at = (*row, int(record.chain_len[row]))
    moved = batch.replace(advantages=jnp.zeros_like(batch.advantages).at[at].set(1.0))
    _, found = train_step(fresh_state(cfg), moved, cfg=cfg)
    assert float(found["diag/gradient_exit"]) > 0
    assert float(found["diag/gradient_latent"]) == float(found["diag/gradient_answer"]) == 0
