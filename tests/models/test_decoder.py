"""The decoder against a float64 oracle, and its four entry points against each other. Breaks when weights imported from elsewhere would mean something else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import decoder as oracle
from support import assert_rounding

from lgrpo.config import ModelConfig, RopeScaling
from lgrpo.models import decoder, presets
from lgrpo.models.kv_cache import make_cache
from lgrpo.models.spec import count_params, init_params, param_specs

# Wavelengths 6, 63, 628 and 6283 against 40 and 160: the first is left alone, the second in between, the others stretched.
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=160)
BASE = ModelConfig(vocab_size=20, d_model=12, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=20)
CASES = {
    "llama": BASE,
    "llama gqa2 tied scaled": dataclasses.replace(BASE, n_kv_heads=2, tie_embeddings=True, rope_scaling=SCALING),
    "qwen2 gqa4": dataclasses.replace(BASE, family="qwen2", n_kv_heads=1, rms_eps=1e-3, rope_theta=100.0),
    "qwen3 gqa2": dataclasses.replace(BASE, family="qwen3", n_kv_heads=2),
    "qwen2 gqa2 tied": dataclasses.replace(BASE, family="qwen2", n_kv_heads=2, tie_embeddings=True, remat=True),
}
MAIN = CASES["qwen2 gqa2 tied"]
forward, logits_of = jax.jit(decoder.forward, static_argnums=1), jax.jit(decoder.logits_of)


@functools.cache
def weights(cfg):
    """Random everywhere: zero biases and unit norms would hide mistakes."""
    rng = np.random.default_rng(0)

    def make(spec):
        centre = 1.0 if spec.init == "ones" else 0.0
        return jnp.asarray(centre + rng.normal(size=spec.shape) * (1.5 / spec.fan_in**0.5 if spec.init == "normal" else 0.2), jnp.float32)

    return jax.tree.map(make, param_specs(cfg), is_leaf=lambda x: hasattr(x, "hf"))


@pytest.mark.parametrize("name", CASES)
def test_forward_and_logits_match_the_oracle(name):
    cfg = CASES[name]
    params, tokens = weights(cfg), np.random.default_rng(2).integers(0, 20, (3, 9))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((9, 9), bool)), (3, 9, 9))
    hidden = forward(params, cfg, params["embed"][tokens], jnp.broadcast_to(jnp.arange(9), (3, 9)), mask)
    for row in range(3):
        want = oracle.forward(params, cfg, np.asarray(params["embed"])[tokens[row]])
        np.testing.assert_allclose(hidden[row], want, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(logits_of(params, hidden[row]), oracle.logits(params, want), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_are_accumulated_and_returned_in_float32(dtype):
    """The product of the numbers as they are stored. Rounded to bfloat16 it would be off by a few thousandths of its size."""
    rng = np.random.default_rng(0)
    x, table = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((5, 64), (64, 30)))
    for found in (decoder.project(x, table), decoder.logits_of({"unembed": table}, x), decoder.logits_of({"embed": table.T}, x)):
        assert found.dtype == jnp.float32
        assert_rounding(found, np.asarray(x, np.float64) @ np.asarray(table, np.float64), size=64.0)


def test_rope_scaling_regimes():
    cfg = CASES["llama gqa2 tied scaled"]
    plain = decoder.rope_frequencies(dataclasses.replace(cfg, rope_scaling=None))
    np.testing.assert_allclose(decoder.rope_frequencies(cfg), oracle.frequencies(cfg), rtol=1e-5)
    share = np.asarray(decoder.rope_frequencies(cfg) / plain)
    assert share[0] == 1 and 1 / 8 < share[1] < 1 and np.allclose(share[2:], 1 / 8)  # all three are really there
    llama = presets.LLAMA_3_2_1B
    np.testing.assert_allclose(decoder.rope_frequencies(llama), oracle.frequencies(llama), rtol=1e-5)


def padded(pad):
    """Two prompts of 6 and 4 real tokens, padded on the left to 6 + pad."""
    rng = np.random.default_rng(3)
    real = rng.integers(0, 20, (2, 6))
    tokens, mask = np.full((2, 6 + pad), 7), np.zeros((2, 6 + pad), bool)
    for row, size in enumerate((6, 4)):
        tokens[row, -size:], mask[row, -size:] = real[row, -size:], True
    return tokens, mask


@functools.partial(jax.jit, static_argnums=1)
def padded_forward(params, cfg, embeds, mask):
    return decoder.forward(params, cfg, embeds, decoder.prompt_positions(mask), decoder.causal_mask(mask))


def test_causality_through_gradients():
    """d hidden[t] / d embed[s] is zero for every s > t and for padding, and not zero for the past."""
    params = weights(MAIN)
    tokens, mask = padded(1)
    embeds = params["embed"][tokens]
    probe = jax.random.normal(jax.random.key(0), embeds.shape)

    @jax.jit
    def influence(embeds):
        jacobian = jax.jacrev(lambda e: (padded_forward(params, MAIN, e, mask) * probe).sum(-1))(embeds)
        return jnp.abs(jacobian).max(-1)  # [N, t, N, s]

    reach = np.asarray(influence(embeds))
    for row in range(2):
        assert not reach[row, :, 1 - row].any()
        for t in np.flatnonzero(mask[row]):
            seen = mask[row] & (np.arange(7) <= t)
            np.testing.assert_array_equal(reach[row, t, row] > 0, seen)


def test_left_padding_changes_nothing():
    params = weights(MAIN)
    (short, short_mask), (long, long_mask) = padded(0), padded(4)
    a, b = (np.asarray(padded_forward(params, MAIN, params["embed"][t], m)) for t, m in ((short, short_mask), (long, long_mask)))
    np.testing.assert_allclose(a[0], b[0, 4:], atol=1e-5)
    np.testing.assert_allclose(a[1, 2:], b[1, 6:], atol=1e-5)
    want = oracle.forward(params, MAIN, np.asarray(params["embed"])[short[1, 2:]])
    np.testing.assert_allclose(a[1, 2:], want, atol=1e-4)


def full_sequences(params, tokens, mask, embeds):
    """Every completion with its prompt as one plain sequence. embeds [B,G,T,D] -> hidden [B,G,T+1,D] from the last prompt position on."""
    batch, group, length, width = embeds.shape
    x = jnp.concatenate([jnp.repeat(params["embed"][tokens], group, 0), embeds.reshape(-1, length, width)], axis=1)
    both = jnp.concatenate([jnp.repeat(jnp.asarray(mask), group, 0), jnp.ones((batch * group, length), bool)], axis=1)
    out = padded_forward(params, MAIN, x, both)
    return np.asarray(out[:, tokens.shape[1] - 1 :]).reshape(batch, group, length + 1, width)


@pytest.fixture(scope="module")
def completion():
    params = weights(MAIN)
    tokens, mask = padded(2)
    embeds = jax.random.normal(jax.random.key(5), (2, 3, 5, MAIN.d_model))
    return params, tokens, mask, embeds, full_sequences(params, tokens, mask, embeds)


def test_cached_decoding_equals_forward(completion):
    params, tokens, mask, embeds, want = completion
    last, k, v = jax.jit(decoder.prefill, static_argnums=1)(params, MAIN, tokens, mask)
    np.testing.assert_allclose(np.broadcast_to(last[:, None], (2, 3, 12)), want[:, :, 0], atol=1e-5)
    cache = make_cache(MAIN, k, v, jnp.asarray(mask), 3, 5)
    # what the cache holds beyond the present must not matter
    cache = cache.replace(k=cache.k + 3.0, v=cache.v - 2.0)
    step = jax.jit(decoder.decode_step, static_argnums=1)
    for t in range(5):
        hidden, cache = step(params, MAIN, embeds[:, :, t], jnp.asarray(t), cache)
        np.testing.assert_allclose(hidden, want[:, :, t + 1], atol=2e-5, err_msg=f"step {t}")


def test_shared_prefix_equals_tiling(completion):
    params, tokens, mask, embeds, want = completion
    last, hidden = jax.jit(decoder.forward_group, static_argnums=1)(params, MAIN, tokens, mask, embeds)
    np.testing.assert_allclose(np.broadcast_to(last[:, None], (2, 3, 12)), want[:, :, 0], atol=1e-5)
    np.testing.assert_allclose(hidden, want[:, :, 1:], atol=2e-5)


@pytest.mark.parametrize(
    ("cfg", "published"),
    [(presets.LLAMA_3_2_1B, 1_235_814_400), (presets.QWEN2_5_0_5B, 494_032_768), (presets.QWEN2_5_MATH_7B, 7_615_616_512)],
)
def test_published_sizes(cfg, published):
    """Numbers of weights in the published checkpoints (tied tables once). eval_shape only: nothing is allocated."""
    assert count_params(cfg) == published
    abstract = jax.eval_shape(functools.partial(init_params, cfg), jax.random.key(0))
    specs = jax.tree.leaves(param_specs(cfg), is_leaf=lambda x: hasattr(x, "hf"))
    assert [x.shape for x in jax.tree.leaves(abstract)] == [s.shape for s in specs]
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    hidden, k, _ = jax.eval_shape(
        lambda p, t: decoder.prefill(decoder.compute_params(p, cfg), cfg, t, jnp.ones((1, 4), bool)), abstract, tokens
    )
    assert hidden.shape == (1, cfg.d_model) and k.shape == (cfg.n_layers, 1, 4, cfg.n_kv_heads, cfg.head_dim)
