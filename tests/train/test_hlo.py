"""The reader of compiled text: its counts are those of the traced program, of arithmetic, and of lines as TPUs print them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lgrpo.config import MeshConfig
from lgrpo.sharding import make_mesh
from lgrpo.train import compute, hlo, work
from lgrpo.train.cost import tally

LAYERS, WIDTH, ROWS = 6, 32, 16


def stack(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def compiled(function, *args):
    return hlo.parse(jax.jit(function).lower(*args).compile().as_text())


def abstract(*shape, sharding=None):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_loops_times_their_trips_as_in_the_traced_program():
    args = abstract(ROWS, WIDTH), abstract(LAYERS, WIDTH, WIDTH)
    grad = jax.grad(lambda x, w: stack(x, w).sum(), 1)
    for function in (stack, grad):
        traced = compute.count(jax.jit(function).trace(*args).jaxpr.jaxpr).fixed
        assert tally(compiled(function, *args)).flop == traced > 0


def test_a_layer_reads_its_weights_and_not_all_of_them():
    cost = tally(compiled(stack, abstract(ROWS, WIDTH), abstract(LAYERS, WIDTH, WIDTH)))
    weights = LAYERS * WIDTH * WIDTH * 4
    # Cut out of the stack and read by the product, at most: written and read once more; not LAYERS times.
    assert weights < cost.memory < 4 * weights + 20 * LAYERS * ROWS * WIDTH * 4


def test_an_update_in_place_costs_the_update():
    def fill(buffer, rows):
        def body(buffer, at):
            return jax.lax.dynamic_update_slice(buffer, rows[None] * at, (at, 0)), None

        return jax.lax.scan(body, buffer, jnp.arange(4000))[0]

    module = hlo.parse(
        jax.jit(fill, donate_argnums=0).lower(jnp.zeros((4000, WIDTH), jnp.float32), jnp.ones(WIDTH, jnp.float32)).compile().as_text()
    )
    assert tally(module).memory < 10 * 4000 * WIDTH * 4


def test_collectives_are_counted_with_their_groups():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4, tensor=1))
    over = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())

    def gathered(x, weights):
        body = lambda x, w: (jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None)  # noqa: E731
        return jax.lax.scan(body, x, weights)[0]

    cost = tally(compiled(gathered, abstract(ROWS, WIDTH, sharding=rows), abstract(LAYERS, WIDTH, WIDTH, sharding=over)))
    assert cost.sent == LAYERS * WIDTH * WIDTH * 4 * 3 / 4
    assert cost.flop == 2 * LAYERS * ROWS / 8 * WIDTH * WIDTH


TPU = """HloModule jit_f, is_scheduled=true, num_partitions=8

%body (p: (u32[], bf16[64,512])) -> (u32[], bf16[64,512]) {
  %p = (u32[]{:T(128)}, bf16[64,512]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[64,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %one = u32[]{:T(128)} constant(1)
  %next = u32[]{:T(128)} add(%i, %one)
  %next.1 = u32[]{:T(128)} add(%next, %one)
  %start = (bf16[64,512]{1,0}, bf16[64,512]{1,0}, u32[], u32[]) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1}}
  %done = bf16[64,512]{1,0:S(1)} collective-permute-done(%start)
  ROOT %t = (u32[], bf16[64,512]{1,0:S(1)}) tuple(%next.1, %done)
}

%cond (q: (u32[], bf16[64,512])) -> pred[] {
  %q = (u32[]{:T(128)}, bf16[64,512]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%q), index=0
  %end = u32[]{:T(128)} constant(8)
  %ended = pred[] custom-call(), custom_call_target="AllocateBuffer"
  %less = pred[] compare(%j, %end), direction=LT
  ROOT %both = pred[] and(%less, %ended)
}

ENTRY %main (a: bf16[64,512], q: f32[2,8,8,64,64], k: f32[2,8,64,64]) -> bf16[64,512] {
  %a = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = u32[]{:T(128)} constant(2)
  %here = bf16[64,512]{1,0:T(8,128)(2,1)S(1)} copy(%a)
  %init = (u32[], bf16[64,512]{1,0:S(1)}) tuple(%zero, %here)
  %while = (u32[], bf16[64,512]{1,0:S(1)}) while(%init), condition=%cond, body=%body
  %q.1 = f32[2,8,8,64]{3,2,1,0} parameter(1)
  %k.1 = f32[2,8,24,64]{3,2,1,0} parameter(2)
  %batched = f32[2,8,8,24]{3,2,1,0} convolution(%q.1, %k.1), window={size=2x8 stride=1x7 pad=0_0x0_0 lhs_dilate=2x8}, dim_labels=01bf_01oi->01bf
  ROOT %back = bf16[64,512]{1,0:T(8,128)(2,1)} get-tuple-element(%while), index=1
}
"""


def test_lines_as_tpus_print_them():
    module = hlo.parse(TPU)
    loop = module.entry.instructions["while"]
    assert hlo.trips(module, module.entry, loop) == 3  # from 2 below 8, two of the original trips at a time
    cost = tally(module)
    assert cost.sent == 3 * 64 * 512 * 2
    # A batched product, written as a convolution whose spread inputs meet their own window position only.
    assert cost.flop == 2 * (2 * 8) * 8 * 24 * 64
    # What stays on the chip is free: the copy reads its source, the product its operands, and it writes its result.
    entry = [work.memory(module, module.entry, i) for i in module.entry.instructions.values()]
    assert sum(entry) == 64 * 512 * 2 + 4 * (2 * 8 * 8 * 64 + 2 * 8 * 24 * 64 + 2 * 8 * 8 * 24)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_0'}", 2),
        ("{}", 8),
    ],
)
def test_groups_in_every_notation(groups, size):
    line = f"  %r = f32[10]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%add"
    text = f"HloModule m, num_partitions=8\n\nENTRY %e (x: f32[10]) -> f32[10] {{\n  %x = f32[10]{{0}} parameter(0)\n{line}\n}}\n"
    module = hlo.parse(text)
    found = work.collective(module, module.entry.instructions["r"])
    assert (found.devices, found.sent) == (size, 2 * (size - 1) / size * 40)
