"""The state machine of a rollout: thinking, forced exits, ends, broken rows. Breaks when a step is masked, scored or ended that should not be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import decoder, latent
from support import END, chi_square, params, prompts, roll, tiny

from lgrpo.config.reads import end_ids
from lgrpo.types import Finish

SMALL = {"model__n_layers": 1, "rollout__group_size": 16, "rollout__max_new_tokens": 7}
CASES = {
    "forced": {"rollout__latent__max_latent": 2},
    "between": {"rollout__latent__max_latent": 4, "rollout__latent__min_latent": 3},
    "free": {"rollout__latent__max_latent": 0},
    "explicit": {"rollout__mode": "explicit", "rollout__latent__k": 1},
    "ends": {"rollout__latent__max_latent": 2, "data__more_eos_ids": (8, 9, 10)},
}


def expected(tokens, cfg):
    """What must be recorded of one row, from its emitted ids alone."""
    c, length = cfg.rollout, cfg.rollout.max_new_tokens
    out = {name: np.zeros(length, bool) for name in ("mask", "is_latent", "loss_mask")}
    thinking, forced, chain_len, finish = True, False, 0, Finish.LENGTH
    for t, token in enumerate(tokens):
        out["mask"][t] = True
        latent_mode = c.mode == "latent" and thinking
        by_force = latent_mode and c.latent.max_latent > 0 and t >= c.latent.max_latent
        assert not by_force or token == END
        out["loss_mask"][t] = not by_force
        out["is_latent"][t] = latent_mode and token != END
        forced |= by_force
        if thinking and token == END:
            thinking = False
        elif thinking:
            chain_len += 1
        if token in end_ids(cfg.data) and not out["is_latent"][t]:
            finish = Finish.FORCED_EXIT if forced else Finish.EOS
            break
    return out | {"chain_len": chain_len, "thought": not thinking, "finish": finish}


@pytest.mark.parametrize("name", CASES)
def test_state_machine(name):
    cfg = tiny(**SMALL, **CASES[name])
    record, limit = roll(cfg), cfg.rollout.latent.max_latent if cfg.rollout.mode == "latent" else 0
    for row in range(len(record.finish)):
        for field, want in expected(record.tokens[row], cfg).items():
            np.testing.assert_array_equal(getattr(record, field)[row], want, err_msg=f"{field} of row {row}")
    # what is not a latent step is one token with all the weight; what was not generated is empty
    hard = record.mask & ~record.is_latent
    assert (
        (record.weights[hard] == np.eye(cfg.rollout.latent.k)[0]).all()
        and not record.ids[hard][:, 1:].any()
        and not record.scores[hard].any()
    )
    np.testing.assert_allclose(record.weights[record.is_latent].sum(-1), 1, atol=1e-5)
    for field in ("ids", "scores", "weights", "logps"):
        assert not getattr(record, field)[~record.mask].any()
    assert np.isfinite(record.logps).all() and (record.logps[record.mask] != 0).all()
    # the cases that this test is about did occur
    seen = set(record.finish.tolist())
    at_limit = hard[:, -1] & (np.isin(record.tokens[:, -1], end_ids(cfg.data)))
    assert at_limit.any() and not (record.finish[at_limit] == Finish.LENGTH).any()
    assert Finish.LENGTH in seen and (Finish.FORCED_EXIT in seen) == (limit > 0)
    if limit:
        assert (record.chain_len <= limit).all() and record.thought.all()
        assert (record.tokens[record.mask & ~record.loss_mask] == END).all() and not record.loss_mask.all()
    assert not (record.tokens[:, : cfg.rollout.latent.min_latent] == END).any()
    assert Finish.EOS in seen


def test_weights_that_are_nan_end_the_row_and_stay_out_of_the_record():
    cfg = tiny(**SMALL, **CASES["forced"])
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params(cfg.model))
    record = roll(cfg, weights=broken)
    assert (record.finish == Finish.NAN).all() and not record.mask.any() and not record.thought.any()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(record))


def test_one_broken_embedding_breaks_only_the_rows_that_use_it():
    cfg, batch, token = tiny(**SMALL, **CASES["forced"]), prompts(), 9
    base, weights = roll(cfg), params(cfg.model)
    record = roll(cfg, weights=weights | {"embed": weights["embed"].at[token].set(jnp.nan)})
    in_prompt = np.repeat(((batch.tokens == token) & batch.mask).any(1), cfg.rollout.group_size)
    last = base.mask.sum(1) - 1
    fed = ((base.ids == token) & (base.weights > 0)).any(-1) & (
        np.arange(base.mask.shape[1]) < last[:, None]
    )  # the last step feeds nothing
    dirty = in_prompt | fed.any(1)
    np.testing.assert_array_equal(record.finish == Finish.NAN, dirty)
    assert 0 < dirty.sum() < len(dirty) and not in_prompt.all()
    clean = jax.tree.map(lambda x: x[~dirty], (base, record))
    jax.tree.map(np.testing.assert_array_equal, *clean)
    steps = np.where(in_prompt, 0, np.where(fed.any(1), fed.argmax(1) + 1, last + 1))
    np.testing.assert_array_equal(record.mask.sum(1), steps)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(record))


def test_answers_follow_the_softmax_of_the_temperature():
    """Noise-free latents make every sample reach its first answer with the same logits: 4000 draws against the oracle's softmax(z / T)."""
    temperature = 0.6
    cfg = tiny(
        **{"model__n_layers": 1, "rollout__group_size": 4000, "rollout__max_new_tokens": 4, "rollout__answer__temperature": temperature},
        **{"rollout__latent__max_latent": 2, "rollout__latent__min_latent": 2},
    )
    batch = jax.tree.map(lambda x: x[:1], prompts())
    record = roll(cfg, batch, noise_scale=np.zeros(4000, np.float32))
    assert (record.ids[:, :3] == record.ids[:1, :3]).all() and (record.tokens[:, 2] == END).all()
    weights = params(cfg.model)
    table = np.asarray(weights["embed"], np.float64)
    inputs = [table[t] for t in batch.tokens[0][batch.mask[0]]]
    inputs += [record.weights[0, t] @ table[record.ids[0, t]] for t in range(3)]
    z = decoder.logits(weights, decoder.forward(weights, cfg.model, np.stack(inputs)))
    # noise-free steps: the K largest logits, weighted by their softmax, with the end of thinking banned
    first = np.where(np.arange(len(table)) == END, -np.inf, z[-4])
    np.testing.assert_array_equal(record.ids[0, 0], np.argsort(-first)[:4])
    np.testing.assert_allclose(record.weights[0, 0], np.exp(latent.log_softmax(np.sort(first)[::-1][:4])), atol=1e-4)
    logps = latent.log_softmax(z[-1] / temperature)
    answers = record.tokens[:, 3]
    assert chi_square(np.bincount(answers, minlength=len(table)), np.exp(logps)) > 1e-3
    np.testing.assert_allclose(record.logps[:, 3], logps[answers], atol=2e-4)
