"""Products of the blocks: the same numbers in either form, and on a CPU in bfloat16 no product that XLA would compute in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support import INIT

from lgrpo.config import MeshConfig, ModelConfig
from lgrpo.latent.logprobs import chunked_logps
from lgrpo.models import decoder, products
from lgrpo.sharding import make_mesh
from lgrpo.train.compute import count, inner

CFG = ModelConfig(vocab_size=48, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40, tie_embeddings=True)


def factors(dtype):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=size), dtype) for size in ((24, 32), (32, 40), (24, 40)))


def exact(dtype, *xs):
    return [np.asarray(x, np.float64) for x in xs], {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[dtype]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("devices", [1, 8])
def test_values_and_gradients_are_those_of_a_float64_product_rounded_once(dtype, devices):
    x, weight, cotangent = factors(dtype)
    (wide_x, wide_weight, wide_cotangent), kind = exact(dtype, x, weight, cotangent)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:devices])):
        if devices > 1:
            x = jax.device_put(x, PartitionSpec("data"))
        value, pull = jax.vjp(jax.jit(products.product), x, weight)
        found = [value, *pull(cotangent)]
    wanted = [wide_x @ wide_weight, wide_cotangent @ wide_weight.T, wide_x.T @ wide_cotangent]
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == dtype
        # Half a unit of rounding, and what float32 sums of 40 terms lose.
        room = 0.51 * ml_dtypes.finfo(kind).eps * np.abs(want) + 40 * 2.0**-23 * 4 if dtype == "bfloat16" else 40 * 2.0**-23 * 8
        assert (np.abs(np.asarray(got, np.float64) - want) <= room).all()


def equations(jaxpr, primitive, in_loop=False):
    """Those of a primitive anywhere in a program, each with whether it is inside a loop."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == primitive:
            yield eqn, in_loop
        for program in inner(eqn):
            yield from equations(program, primitive, in_loop or eqn.primitive.name in ("scan", "while"))


def dots(jaxpr):
    """(type of the left factor, of the right one, of the result, contracted axes, batch axes) of every product in a program."""
    for eqn, _ in equations(jaxpr, "dot_general"):
        yield (*(str(v.aval.dtype) for v in (*eqn.invars, *eqn.outvars)), *eqn.params["dimension_numbers"])


def made(jaxpr, primitive, size):
    """Of every array of this size that a primitive makes in a program: whether that is inside a loop."""
    return [in_loop for eqn, in_loop in equations(jaxpr, primitive) if eqn.outvars[0].aval.shape == size]


def gradient(dtype, mesh, frozen=False):
    """Program of value and gradient of log-probs that pass through the whole model. frozen: the table, which is tied, has no gradient."""
    cfg = dataclasses.replace(CFG, dtype=dtype)
    params = INIT(CFG, jax.random.key(0))
    tokens = jnp.arange(24).reshape(2, 12)

    def loss(params):
        params = params | {"embed": jax.lax.stop_gradient(params["embed"])} if frozen else params
        params = decoder.compute_params(params, cfg)
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((12, 12), bool)), (2, 12, 12))
        hidden = decoder.forward(params, cfg, params["embed"][tokens], jnp.broadcast_to(jnp.arange(12), (2, 12)), mask)
        return chunked_logps(params, hidden, tokens[..., None], jnp.ones((2, 12)), chunk=8).chosen.sum()

    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss)).trace(params).jaxpr.jaxpr


def test_on_a_cpu_every_product_of_bfloat16_is_one_that_the_processor_has():
    """Those of attention have batch axes. In float32, and on several devices, nothing is written differently."""
    one, eight = make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig())
    plain = [dot for dot in dots(gradient("bfloat16", one)) if not dot[-1][0]]
    assert plain and set(plain) == {("bfloat16", "bfloat16", "float32", ((1,), (0,)), ((), ()))}
    assert ("bfloat16",) * 3 in {dot[:3] for dot in dots(gradient("bfloat16", eight))}
    assert {dot[:3] for dot in dots(gradient("float32", one))} == {("float32",) * 3}


def test_the_same_operations_whatever_the_form():
    """What a backward pass keeps is the same too: nothing is multiplied twice."""
    one, eight = make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig())
    assert count(gradient("bfloat16", one)) == count(gradient("float32", one)) == count(gradient("bfloat16", eight))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("dtype", "primitive"), [("bfloat16", "gather"), ("float32", "optimization_barrier")])
def test_on_a_cpu_the_table_is_laid_out_before_the_slices_and_not_in_each_of_them(dtype, primitive, frozen):
    """For the product with its transpose, and for the rows that a frozen one's gradient gathers."""
    one, size = make_mesh(MeshConfig(), jax.devices()[:1]), (CFG.vocab_size, CFG.d_model)
    program = gradient(dtype, one, frozen)
    assert set(made(program, primitive, size)) == {False}
    assert True not in set(made(program, "transpose", size)), "read through a transpose in a slice"


def test_elsewhere_the_transpose_stays_a_part_of_the_product(monkeypatch):
    monkeypatch.setattr(products, "platform", lambda: "tpu")
    one, size = make_mesh(MeshConfig(), jax.devices()[:1]), (CFG.vocab_size, CFG.d_model)
    program = gradient("bfloat16", one, frozen=True)
    assert not list(made(program, "optimization_barrier", size)) and True in set(made(program, "transpose", size))


@functools.cache
def tied():
    return decoder.compute_params(INIT(CFG, jax.random.key(1)), dataclasses.replace(CFG, dtype="bfloat16"))


def test_a_tied_table_is_copied_once_for_a_rollout():
    params = decoder.with_unembedding(tied())
    np.testing.assert_array_equal(params["unembed"], tied()["embed"].T)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), tied())
    assert decoder.with_unembedding(wide) is wide, "read as it lies"
    assert decoder.with_unembedding(params) is params
