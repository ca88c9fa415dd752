"""Stage 1 layouts, masks and projection against the numbers of the official functions (tests/golden/sft.npz), and what they must do in general."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgrpo.algos.latent_labels import decoder_sequence, encoder_sequence, project
from lgrpo.latent.mixture import embed_mixture

# Op by op these take seconds.
encode = jax.jit(encoder_sequence, static_argnames="compression")
decode = jax.jit(decoder_sequence, static_argnames="compression")
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "sft.npz")
EOS = 59


def case(name):
    """(prompt, mask, chain, mask, end, answer, mask) of a golden case; the start marker belongs to the prompt, 59 to the answer."""
    get = {key: GOLDEN[f"seq_{name}_{key}"] for key in ("prompt", "cot", "answer", "start_marker", "end_marker")}
    rows = len(get["prompt"])
    prompt = np.concatenate([get["prompt"], np.tile(get["start_marker"], (rows, 1))], axis=1)
    answer = np.concatenate([get["answer"], np.full((rows, 1), -1)], axis=1)
    answer[np.arange(rows), (answer >= 0).sum(1)] = EOS
    return prompt, np.ones(prompt.shape, bool), get["cot"], get["cot"] >= 0, get["end_marker"], answer, answer >= 0


def padded_left(prompt, mask, by=3):
    return np.pad(prompt, ((0, 0), (by, 0)), constant_values=7), np.pad(mask, ((0, 0), (by, 0)))


def same(ours, golden, fill=0):
    """Equal, and nothing but `fill` where ours is wider (static shapes)."""
    ours = np.asarray(ours)
    wide = np.full(ours.shape, fill, ours.dtype)
    wide[tuple(slice(n) for n in golden.shape)] = golden
    np.testing.assert_array_equal(ours, wide)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("left", [0, 3])
def test_the_encoder_reads_what_the_official_one_reads(name, left):
    prompt, prompt_mask, chain, chain_mask, end, *_ = case(name)
    layout = encode(*padded_left(prompt, prompt_mask, left), chain, chain_mask, end, compression=int(GOLDEN["compression_rate"]))
    tokens = np.where(layout.is_compress, int(GOLDEN["compress_id"]), layout.tokens)
    same(tokens, GOLDEN[f"seq_{name}_cot_ids"])
    same(layout.attend, GOLDEN[f"seq_{name}_induction_mask"][:, 0])
    for row in range(len(prompt)):
        found = np.flatnonzero(np.asarray(layout.is_compress)[row])
        np.testing.assert_array_equal(np.asarray(layout.where)[row][np.asarray(layout.latents)[row]], found)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("left", [0, 3])
def test_the_decoder_reads_what_the_official_one_reads(name, left):
    prompt, prompt_mask, *rest = case(name)
    layout = decode(*padded_left(prompt, prompt_mask, left), *rest, compression=int(GOLDEN["compression_rate"]))
    same(np.where(layout.is_latent, int(GOLDEN["latent_id"]), layout.tokens), GOLDEN[f"seq_{name}_input_ids"])
    same(np.where(layout.labelled, layout.tokens, -100), GOLDEN[f"seq_{name}_labels"], fill=-100)
    same(layout.positions, GOLDEN[f"seq_{name}_position_ids"])
    same(layout.attend, GOLDEN[f"seq_{name}_supervision_mask"][:, 0])


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_projection(name):
    get = {key.removeprefix(f"se_{name}_"): GOLDEN[key] for key in GOLDEN if key.startswith(f"se_{name}_")}
    spec = {"k": int(get["top_k"]), "temperature": float(get["temperature"]), "kind": "cosine" if get["use_cosine"] else "dot"}

    def embedded(x):
        ids, probs = project(x, get["table"], **spec)
        return jnp.sum(get["weights"] * embed_mixture(jnp.asarray(get["table"]), ids, probs)), (ids, probs)

    with jax.default_matmul_precision("highest"):
        grad, (ids, probs) = jax.jit(jax.grad(embedded, has_aux=True))(jnp.asarray(get["x"]))
    close = {"rtol": 5e-5, "atol": 5e-5}
    if "ids" in get:
        np.testing.assert_array_equal(ids, get["ids"])
        np.testing.assert_allclose(probs, get["probs_f64"], **close)
    else:  # K = V: the official function keeps the order of the vocabulary
        by_id = np.zeros(get["probs_f64"].shape)
        np.put_along_axis(by_id, np.asarray(ids), np.asarray(probs, np.float64), axis=1)
        np.testing.assert_allclose(by_id, get["probs_f64"], **close)
    np.testing.assert_allclose(jax.jit(embed_mixture)(get["table"], ids, probs), get["new_x_f64"], **close)
    np.testing.assert_allclose(grad, get["grad_x_f64"], **close)


def test_the_end_of_thinking_never_enters_a_mixture():
    table = np.eye(6, dtype=np.float32)
    ids, probs = project(10.0 * table[2:3] + 5.0 * table[4:5], table, k=3, banned_id=2)
    assert 2 not in np.asarray(ids)
    assert np.asarray(ids)[0, 0] == 4
    np.testing.assert_allclose(np.asarray(probs).sum(-1), 1.0, rtol=1e-6)


def test_an_empty_chain_has_no_latents():
    prompt, prompt_mask, chain, chain_mask, end, answer, answer_mask = case("a")
    none = np.zeros_like(chain_mask)
    layout = encode(prompt, prompt_mask, chain, none, end, compression=2)
    assert not np.asarray(layout.latents).any()
    assert not np.asarray(layout.is_compress).any()
    decoded = decode(prompt, prompt_mask, chain, none, end, answer, answer_mask, compression=2)
    np.testing.assert_array_equal(np.asarray(decoded.positions)[0][:7], np.arange(7))
