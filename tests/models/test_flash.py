"""Library attention against models/attention.py, in values and gradients; splash in Pallas's interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import change, params, tiny

from lgrpo.models import decoder, flash
from lgrpo.models.attention import attend, attend_group
from lgrpo.models.decoder import causal_mask
from lgrpo.sharding import make_mesh

BATCH, PROMPT, GROUP, LENGTH, HEADS, KV, WIDTH = 8, 5, 3, 60, 4, 2, 16
BACKENDS = {
    "splash": functools.partial(flash.splash_group, interpret=True),
    "xla": functools.partial(flash.dot_product_group, implementation="xla"),
}


def inputs(batch=BATCH, group=GROUP):
    keys = jax.random.split(jax.random.key(0), 4)
    size = PROMPT + group * LENGTH
    q, k, v, weight = (jax.random.normal(key, (batch, size, heads, WIDTH)) for key, heads in zip(keys, (HEADS, KV, KV, HEADS), strict=True))
    mask = jnp.arange(PROMPT) >= jnp.arange(batch)[:, None] % (PROMPT - 1)
    # What padding computes is nobody's business, as long as it is finite.
    seen = jnp.concatenate([mask, jnp.ones((batch, group * LENGTH), bool)], axis=1)
    return q, k, v, mask, weight * seen[..., None, None]


def plain(q, k, v, mask, group):
    batch = q.shape[0]
    head = attend(q[:, :PROMPT], k[:, :PROMPT], v[:, :PROMPT], causal_mask(mask))
    if not group:
        return head
    own = [x[:, PROMPT:].reshape(batch, group, LENGTH, *x.shape[2:]) for x in (q, k, v)]
    causal = jnp.tril(jnp.ones((1, 1, LENGTH, LENGTH), bool))
    tail = attend_group(*own, k[:, :PROMPT], v[:, :PROMPT], mask, causal)
    return jnp.concatenate([head, tail.reshape(batch, group * LENGTH, HEADS, WIDTH)], axis=1)


def value_and_grad(attention, q, k, v, mask, weight, group):
    return jax.jit(jax.value_and_grad(lambda q, k, v: (attention(q, k, v, mask, group) * weight).sum(), argnums=(0, 1, 2)))(q, k, v)


@pytest.mark.parametrize("group", [0, GROUP])
@pytest.mark.parametrize("name", BACKENDS)
def test_same_values_and_gradients(name, group):
    q, k, v, mask, weight = inputs(batch=2, group=group)
    want, want_grads = value_and_grad(plain, q, k, v, mask, weight, group)
    got, got_grads = value_and_grad(BACKENDS[name], q, k, v, mask, weight, group)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for a, b in zip(got_grads, want_grads, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_mask_is_the_structure_of_a_group():
    size = 512
    mask = flash._GroupMask(PROMPT, GROUP, LENGTH, size)
    seen = mask[:, :]
    owner = np.array([-1] * PROMPT + [g for g in range(GROUP) for _ in range(LENGTH)] + [GROUP] * (size - PROMPT - GROUP * LENGTH))
    for row in range(size):
        for column in {0, PROMPT - 1, PROMPT, row - 1, row, min(row + 1, size - 1), LENGTH, size - 1} - {-1}:
            shared = owner[column] == -1 and owner[row] < GROUP
            assert seen[row, column] == (column <= row and (shared or owner[row] == owner[column])), (row, column)
    assert (mask[100:228, 0:128] == seen[100:228, 0:128]).all() and mask == flash._GroupMask(PROMPT, GROUP, LENGTH, size)


def test_blocks_that_nobody_sees_are_skipped():
    kernel = flash._splash_kernel(1, 512, 3, 512, 2048, True)
    # Of 16 blocks: the first column, and the other three on the diagonal.
    assert (np.asarray(kernel.fwd_mask_info.block_mask) > 0).sum() == 7


@pytest.mark.parametrize("rows", [BATCH, 3])
def test_splash_on_a_mesh(rows):
    q, k, v, mask, weight = inputs(batch=rows)
    want = jax.jit(lambda *x: plain(*x, GROUP))(q, k, v, mask)
    mesh = make_mesh(tiny(mesh__data=2, mesh__fsdp=2, mesh__tensor=2).mesh)
    with jax.set_mesh(mesh):
        got = jax.jit(lambda *x: BACKENDS["splash"](*x, GROUP))(q, k, v, mask)
    seen = np.asarray(weight) != 0
    np.testing.assert_allclose(np.where(seen, got, 0), np.where(seen, want, 0), atol=2e-5)


@pytest.mark.parametrize("name", BACKENDS)
def test_model_and_prefill(name, monkeypatch):
    monkeypatch.setattr(flash, "flash_group", lambda *args: BACKENDS[name](*args[:-1]))
    cfg = change(tiny(), model__attention="plain").model
    library = change(tiny(), model__attention="splash").model
    weights = decoder.compute_params(params(cfg), cfg)
    tokens = jax.random.randint(jax.random.key(1), (2, PROMPT), 4, 24)
    mask = jnp.arange(PROMPT) >= jnp.array([0, 2])[:, None]
    embeds = jax.random.normal(jax.random.key(2), (2, 3, 7, cfg.d_model))
    run = jax.jit(
        lambda cfg: (decoder.forward_group(weights, cfg, tokens, mask, embeds), decoder.prefill(weights, cfg, tokens, mask)),
        static_argnums=0,
    )
    (want, want_cache), (got, got_cache) = run(cfg), run(library)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    want, got = want_cache, got_cache
    np.testing.assert_allclose(got[0], want[0], atol=2e-5)
    for a, b in zip(got[1:], want[1:], strict=True):
        np.testing.assert_allclose(np.where(mask[..., None, None], a, 0), np.where(mask[..., None, None], b, 0), atol=2e-5)


def test_auto_follows_platform_and_length(monkeypatch):
    cfg = tiny(model__dtype="bfloat16").model
    assert flash.attention_backend(cfg, 4096) == "plain"
    assert flash.attention_backend(tiny(model__attention="cudnn").model, 8) == "cudnn"
    for platform, backend in {"tpu": "splash", "gpu": "cudnn", "cpu": "plain"}.items():
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert flash.attention_backend(cfg, 4096) == backend
        assert flash.attention_backend(cfg, 1023) == "plain"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert flash.attention_backend(tiny().model, 4096) == "plain"  # float32 is not for cuDNN
