"""Stage 1 of Latent-SFT: what may reach what, shown by gradients, and the label noise of stage 2."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import END, EOS, VOCAB, change, prompts, tiny

from lgrpo.algos.latent_sft import LatentLabels, noisy_labels
from lgrpo.algos.stage1 import compressed, decode_logps, encode, encoder_from, label_count, stage1_specs, stage1_terms
from lgrpo.models.decoder import forward
from lgrpo.models.spec import spec_init

CFG = tiny(sft__stage="union", sft__compression=2)
CHAINS = (6, 5, 1, 3)


def make_batch(pad=0):
    """Four records: chains of different lengths, one of them a single token, with `pad` more columns of padding everywhere."""
    rng = np.random.default_rng(1)
    asked = prompts(pad=pad)
    chain = np.pad(rng.integers(4, VOCAB, (4, 6)).astype(np.int32), ((0, 0), (0, pad)))
    answer = np.pad(np.tile(np.array([[7, 9, EOS]], np.int32), (4, 1)), ((0, 0), (0, pad)))
    return {
        "prompt_tokens": asked.tokens,
        "prompt_mask": asked.mask,
        "uid": asked.uid,
        "chain_tokens": chain,
        "chain_mask": np.arange(chain.shape[1]) < np.array(CHAINS)[:, None],
        "answer_tokens": answer,
        "answer_mask": np.tile(np.arange(answer.shape[1]) < 3, (4, 1)),
    }


# Compiled as a whole: op by op, these tests would spend minutes in the compiler.
terms = jax.jit(stage1_terms, static_argnums=2)
gradients = jax.jit(jax.grad(lambda p, batch, cfg: stage1_terms(p, batch, cfg).total), static_argnums=2)


@functools.cache
def parameters(layers=2):
    model = change(CFG, model__n_layers=layers).model
    return jax.jit(lambda: spec_init(stage1_specs(model), model, jax.random.key(0)))()


@pytest.fixture(scope="module")
def params():
    return parameters()


def latent_embeddings(params, chain_embed_shift, batch):
    """Mixtures' scores as a differentiable function of a shift added to every chain token's embedding, [N,C,D]."""
    sequence = compressed(batch, CFG)
    encoder = params["encoder"]
    # Where each chain token stands in the encoder's sequence: after the prompt, one further for every compress position before it.
    at = batch["prompt_mask"].sum(1)[:, None] + np.arange(6) + np.arange(6) // 2
    shift = jnp.zeros((*sequence.tokens.shape, CFG.model.d_model))
    shift = shift.at[np.arange(4)[:, None], at].add(jnp.where(batch["chain_mask"][..., None], chain_embed_shift, 0.0))
    embeds = jnp.where(sequence.is_compress[..., None], encoder["compress"], encoder["embed"][sequence.tokens]) + shift
    hidden = forward(encoder, CFG.model, embeds, sequence.positions, sequence.attend)
    return jnp.take_along_axis(hidden, sequence.where[..., None], axis=1), sequence.latents


def test_a_latent_sees_the_text_before_it_and_nothing_of_its_future(params):
    batch = make_batch()
    shift = jnp.zeros((4, 6, CFG.model.d_model))
    jacobian = jax.jit(jax.jacobian(lambda s: latent_embeddings(params, s, batch)[0].sum(-1)))(shift)  # [N,M,N,C,D]
    reach = np.abs(np.asarray(jacobian)).max(-1)[np.arange(4), :, np.arange(4)] > 1e-9  # [N,M,C]
    for row, length in enumerate(CHAINS):
        for latent in range(-(-length // 2)):
            np.testing.assert_array_equal(reach[row, latent], np.arange(6) < min(2 * latent + 2, length), f"{row} {latent}")


def test_compress_positions_do_not_see_each_other(params):
    batch = make_batch()
    sequence = compressed(batch, CFG)
    attend, compress = np.asarray(sequence.attend), np.asarray(sequence.is_compress)
    for row in range(4):
        seen = attend[row][:, compress[row]]
        np.testing.assert_array_equal(seen.sum(0), 1)  # by itself alone


def one_row(length=6):
    """A record whose chain tokens are all different and appear nowhere else."""
    batch = {name: x[:1] for name, x in make_batch().items()}
    batch["prompt_tokens"] = np.where(batch["prompt_mask"], 4, 0).astype(np.int32)
    batch["chain_tokens"] = np.arange(10, 16, dtype=np.int32)[None]
    batch["chain_mask"] = np.arange(6)[None] < length
    return batch


def reach_of_text(cfg):
    """Which token embeddings [S-1,V] and which latents [S-1,M] the decoder's log-probs depend on, and the steps in the loss, for one_row."""
    params, batch = parameters(cfg.model.n_layers), one_row()
    ids, probs = jax.jit(lambda p: encode(p, compressed(batch, cfg), cfg))(params)

    def logps(shift, probs):
        decoder = params["decoder"] | {"embed": params["decoder"]["embed"] + shift}
        return decode_logps(params | {"decoder": decoder}, ids, probs, batch, cfg)[0][0]

    shift = jnp.zeros((VOCAB, cfg.model.d_model))
    by_token, by_latent = jax.jit(jax.jacobian(logps, argnums=(0, 1)))(shift, probs)  # [S-1,V,D], [S-1,1,M,K]
    wanted = jax.jit(lambda p: decode_logps(p, ids, probs, batch, cfg)[1][0])(params)
    found = [np.abs(np.asarray(x)).max(-1) > 1e-9 for x in (by_token, by_latent[:, 0])]
    return *found, np.flatnonzero(np.asarray(wanted))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_answer_cannot_see_segments(layers):
    """Not even through other positions: whatever it sees has seen no segment."""
    by_token, by_latent, steps = reach_of_text(change(CFG, model__n_layers=layers))
    tail = steps[4:]  # chunks 12 13 and 14 15, then the end and the answer
    assert len(tail) == 4
    assert not by_token[tail][:, 10:16].any()
    assert by_token[tail][:, 4].all(), "the prompt"
    assert by_latent[tail].all(), "every latent"


def test_a_segment_sees_its_own_latent_and_itself():
    """In one layer. In a deeper model its latent brings what it has seen itself: the prompt and earlier latents, still no other segment."""
    by_token, by_latent, steps = reach_of_text(change(CFG, model__n_layers=1))
    first, second = steps[1], steps[3]  # predicted at 12 and at 14
    np.testing.assert_array_equal(by_latent[[first, second]], [[True, False, False], [False, True, False]])
    np.testing.assert_array_equal(by_token[[first, second]][:, [4, 10, 11, 12, 13, 14, 15]], np.eye(7, dtype=bool)[[3, 5]])
    by_token, by_latent, steps = reach_of_text(CFG)
    np.testing.assert_array_equal(by_latent[[first, second]], [[True, False, False], [True, True, False]])
    np.testing.assert_array_equal(by_token[[first, second]][:, 10:16], np.eye(6, dtype=bool)[[2, 4]])


def test_padding_changes_nothing(params):
    totals = [terms(params, make_batch(pad), CFG) for pad in (0, 2)]
    np.testing.assert_allclose(totals[0].total, totals[1].total, rtol=1e-5)
    assert totals[0].count == totals[1].count == label_count(make_batch(), CFG)


def test_gradients_are_finite_whatever_is_in_padding(params):
    batch = make_batch(2)
    batch["chain_tokens"] = np.where(batch["chain_mask"], batch["chain_tokens"], VOCAB - 1)
    grads = gradients(params, batch, CFG)
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(grads))
    assert np.abs(np.asarray(grads["encoder"]["compress"])).max() > 0


def test_the_table_in_the_projection_is_a_constant(params):
    """The decoder's embedding learns from the text it embeds, not from the latents."""
    batch = one_row(length=2)  # one latent, no chunk in the decoder: only end and answer are read
    grads = gradients(params, batch, CFG)
    touched = np.abs(np.asarray(grads["decoder"]["embed"])).max(-1) > 0
    assert set(np.flatnonzero(touched)) <= {4, END, 7, 9, EOS}


def test_an_encoder_starts_as_the_policy(params):
    encoder = encoder_from(params["decoder"], params["encoder"]["compress"])
    assert jax.tree.structure(encoder) == jax.tree.structure(params["encoder"])


def redrawn(labels, scale=4.0, **spec):
    keys = jax.random.split(jax.random.key(5), labels.ids.shape[0])
    return jax.jit(lambda x, k: noisy_labels(x, k, scale=scale, clamp=None, think_end_id=END, **spec))(labels, keys)


def spoiled_labels(rows=400):
    """Latents in which the end of thinking comes second, so that noise often puts it on top."""
    ids = jnp.tile(jnp.array([[[8, END, 9]]], jnp.int32), (rows, 2, 1))
    probs = jnp.tile(jnp.array([[[0.5, 0.3, 0.2]]], jnp.float32), (rows, 2, 1))
    return LatentLabels(ids, probs, jnp.tile(jnp.array([[True, False]]), (rows, 1)))


def test_noise_that_puts_the_end_on_top_is_drawn_again():
    labels = spoiled_labels()
    noisy = redrawn(labels)
    real = np.asarray(labels.mask)
    assert (np.asarray(noisy.ids)[..., 0][real] != END).all()
    unchanged = (np.asarray(noisy.probs) == np.asarray(labels.probs)).all(-1)[real]
    assert unchanged.mean() < 0.02, "redrawn, not left clean"
    # The law is that of the noise given that the end is not on top.
    free = redrawn(labels.replace(ids=jnp.where(labels.ids == END, 5, labels.ids)))
    kept = np.asarray(free.ids)[..., 0][real] != 5
    given = np.asarray(free.probs)[real][kept].mean(0)
    np.testing.assert_allclose(np.asarray(noisy.probs)[real].mean(0), given, atol=0.06)
    np.testing.assert_array_equal(np.asarray(noisy.ids)[~real], np.asarray(labels.ids)[~real])


def test_without_redraws_the_label_stays_clean():
    labels = spoiled_labels()
    first = redrawn(labels, redraws=0)
    clean = (np.asarray(first.probs) == np.asarray(labels.probs)).all(-1)[np.asarray(labels.mask)]
    assert 0.1 < clean.mean() < 0.9
    assert (np.asarray(first.ids)[:, 0, 0] != END).all()


def test_a_label_that_ends_by_itself_is_left_to_the_noise():
    labels = spoiled_labels()
    labels = labels.replace(ids=labels.ids[..., jnp.array([1, 0, 2])])
    tops = np.asarray(redrawn(labels).ids)[:, 0, 0]
    assert {8, END} <= set(tops.tolist())
