"""Interventions on latent steps: what is fed, what is recorded, and that the ordinary rollout does not notice the hook."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_rounding

from lgrpo.data.pipeline import prompt_batches
from lgrpo.evaluation import counterfactual
from lgrpo.evaluation.measure import sample, static_config
from lgrpo.evaluation.passes import NOISE_FREE, Pass
from lgrpo.latent.intervene import Intervention, Kind, replace_latents
from lgrpo.latent.replay import replay_logps
from lgrpo.types import Finish, PromptBatch

CLEAN = Pass(NOISE_FREE, 0.0)
REPLAY = jax.jit(replay_logps, static_argnames=("cfg",))


@pytest.fixture(scope="module")
def batch(cfg, tokenizer):
    return prompt_batches(cfg, tokenizer, "test", batch=8)[0][0]


@pytest.fixture(scope="module")
def clean(params, cfg, mesh, batch):
    with jax.set_mesh(mesh):
        return sample(params, cfg, mesh, CLEAN, batch)


@pytest.fixture(scope="module")
def disturbed(params, cfg, mesh, batch, clean):
    with jax.set_mesh(mesh):
        return {k: sample(params, cfg, mesh, CLEAN, batch, 0, counterfactual.build(k, clean, batch.uid, 2)) for k in Kind}


def test_nothing_is_changed_by_kind_none(clean, disturbed):
    for mine, theirs in zip(jax.tree.leaves(clean), jax.tree.leaves(disturbed[Kind.NONE]), strict=True):
        assert_rounding(mine, theirs, units=64 if mine.dtype == np.float32 else 0)  # another program
    assert clean.is_latent.sum(-1).min() >= 2


def test_what_is_recorded_says_what_was_fed(clean, disturbed):
    latent = {kind: np.asarray(r.is_latent) for kind, r in disturbed.items()}
    assert (disturbed[Kind.ZEROED].weights[latent[Kind.ZEROED]] == 0).all()
    hard = disturbed[Kind.HARDENED].weights[latent[Kind.HARDENED]]
    assert (hard[:, 0] == 1).all() and (hard[:, 1:] == 0).all()
    repeated = disturbed[Kind.REPEATED]
    for n in range(8):
        steps = latent[Kind.REPEATED][n].sum()
        assert (repeated.ids[n, :steps] == clean.ids[n, 0]).all() and (repeated.weights[n, :steps] == clean.weights[n, 0]).all()
    shuffled, reordered = disturbed[Kind.SHUFFLED], disturbed[Kind.REORDERED]
    for n in range(8):
        donor = (n + 1) % 8
        own, theirs = int(clean.is_latent[n].sum()), int(clean.is_latent[donor].sum())
        for t in range(latent[Kind.SHUFFLED][n].sum()):
            np.testing.assert_array_equal(shuffled.ids[n, t], clean.ids[donor, min(t, theirs - 1)])
        for t in range(min(own, latent[Kind.REORDERED][n].sum())):
            np.testing.assert_array_equal(reordered.weights[n, t], clean.weights[n, (t + 1) % own])


def test_dropped_thinking_ends_at_once(params, cfg, mesh, batch, clean):
    with jax.set_mesh(mesh):
        dropped = sample(params, cfg, mesh, CLEAN, batch, 0, counterfactual.build(Kind.CUT, clean, batch.uid))
    assert not dropped.is_latent.any() and (dropped.chain_len == 0).all() and dropped.thought.all()
    assert (dropped.tokens[:, 0] == cfg.data.think_end_id).all() and not dropped.loss_mask[:, 0].any()
    assert np.isin(dropped.finish, (Finish.FORCED_EXIT, Finish.LENGTH)).all()


@pytest.mark.parametrize("kind", Kind)
def test_answers_follow_from_what_was_recorded(params, cfg, batch, disturbed, kind):
    """Teacher-forced on the recorded inputs, the model gives the log-probs that the sampler saw: so these inputs were fed."""
    record = jax.tree.map(lambda x: jnp.asarray(x)[:, None], disturbed[kind])
    prompts = PromptBatch(*map(jnp.asarray, (batch.tokens, batch.mask, batch.uid)))
    replayed = np.asarray(REPLAY(params, prompts, record, cfg=static_config(cfg, CLEAN)))[:, 0]
    answer = disturbed[kind].mask & ~disturbed[kind].is_latent & disturbed[kind].loss_mask
    assert_rounding(replayed[answer], disturbed[kind].logps[answer], size=10.0)
    assert answer.sum() > 8


def test_interventions_change_what_comes_after(clean, disturbed):
    for kind in (Kind.SHUFFLED, Kind.ZEROED, Kind.REPEATED, Kind.HARDENED):
        assert not np.array_equal(clean.logps * ~clean.is_latent, disturbed[kind].logps * ~disturbed[kind].is_latent), kind


@pytest.mark.parametrize("kind", [Kind.SHUFFLED, Kind.REORDERED])
@pytest.mark.parametrize("has", [1, 2, 3])
def test_a_donor_with_fewer_latents_gives_its_last(kind, has):
    """What stands in its record behind its latents is its answer, which nobody must be fed."""
    ids = np.array([[[1, 2], [3, 4], [5, 6]]])
    weights = np.array([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]], np.float32)
    how = Intervention(np.array([kind], np.int32), ids, weights, np.array([has], np.int32))
    own = (np.array([[7, 8]]), np.array([[0.5, 0.5]], np.float32))
    for step in range(3):
        fed, weight = jax.device_get(replace_latents(how, np.int32(step), *own, *own))
        np.testing.assert_array_equal(fed[0], ids[0, min(step, has - 1)])
        np.testing.assert_array_equal(weight[0], weights[0, min(step, has - 1)])


def test_donors_have_another_problem_and_latents(clean):
    uid = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    donor, found = counterfactual._donors(uid, np.array([2, 2, 0, 2, 2, 0, 2, 2]))
    assert found.all() and (uid[donor] != uid).all() and not np.isin(donor, (2, 5)).any()
    donor, found = counterfactual._donors(np.zeros(4, int), np.full(4, 2))
    assert not found.any()
    alone = counterfactual.build(Kind.SHUFFLED, clean, np.zeros(8, int))
    assert (alone.steps == 0).all()  # nobody to take from: rows stay as they are


def test_all_kinds_share_one_compilation(params, cfg, mesh, batch, clean, disturbed):
    from lgrpo.evaluation import measure

    with jax.set_mesh(mesh):
        for change in (None, counterfactual.build(Kind.NONE, clean, batch.uid)):  # here, and not as fixtures of other tests may have done
            sample(params, cfg, mesh, CLEAN, batch, 0, change)
        before = measure._rollout._cache_size()
        for kind in Kind:
            sample(params, cfg, mesh, CLEAN, batch, 0, counterfactual.build(kind, clean, batch.uid))
        other = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, eval_split="svamp", path="elsewhere"))
        sample(params, other, mesh, CLEAN, batch)
        assert measure._rollout._cache_size() == before
