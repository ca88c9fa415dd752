"""Cost of a run. Breaks when equal compute would compare unequal work: a loop counted once, a restart that forgets, a part that is left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import change, fresh_state, params, prompts, roll, tiny, train_batch

from lgrpo.latent.buckets import longest
from lgrpo.latent.rollout import decode_trips
from lgrpo.train.compute import Compute, Flop, count
from lgrpo.train.steps.rl import _policy_terms, rollout_step, train_step


def flop_of(function, *shapes):
    return count(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr)


def test_products_by_hand():
    product = 2 * 3 * 5 * 7
    assert flop_of(lambda a, b: a @ b, (3, 5), (5, 7)).of() == product
    assert flop_of(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (4, 3, 5), (4, 7, 5)).of() == 4 * product
    scanned = flop_of(lambda a, b: jax.lax.scan(lambda c, _: (c, (c @ b).sum()), a, None, length=11)[1], (3, 5), (5, 7))
    assert scanned.of() == 11 * product
    assert (
        flop_of(lambda a, b: jax.grad(lambda x: jnp.sin(x @ b).sum())(a), (3, 5), (5, 7)).of() == 2 * product
    )  # forward, and one of two backward
    kept = flop_of(lambda a, b: jax.grad(lambda x: jax.checkpoint(lambda y: jnp.sin(y @ b).sum())(x))(a), (3, 5), (5, 7))
    assert kept.of() == 3 * product  # what is computed again is work too
    loop = flop_of(lambda a, b: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ b, a), (5, 5), (5, 5))
    assert loop == Flop(0.0, (2 * 125,)) and loop.of([4]) == 1000
    with pytest.raises(ValueError, match="zip"):
        loop.of()


def test_a_program_without_loops_has_what_the_compiler_counts():
    """XLA adds what is no product: a few per cent of a layer of usual shape."""

    def layer(x, w, v):
        return jax.nn.silu(x @ w) @ v

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 128), (128, 512), (512, 128))]
    theirs = jax.jit(layer).lower(*shapes).compile().cost_analysis()["flops"]
    assert 0.9 < flop_of(layer, *(s.shape for s in shapes)).of() / theirs <= 1.0


@pytest.mark.parametrize("more", [{}, {"rollout__max_new_tokens": 70, "rollout__latent__max_latent": 45, "model__n_layers": 1}])
def test_a_rollout_costs_what_its_steps_cost(more):
    """Every decode step is a forward pass of a token in each row: weights by hand, attention by its shapes."""
    cfg = tiny(**more)
    record = roll(cfg)
    trips = decode_trips(longest(record), cfg.rollout)
    assert sum(trips) == record.mask.sum(1).max() - 1
    one = Compute({}).program(rollout_step, params(cfg.model), prompts(), jax.random.key(0), cfg=cfg)
    m, rows = cfg.model, len(record.finish)
    matrices = m.n_layers * (2 * m.d_model * m.n_heads * m.head_dim + 2 * m.d_model * m.n_kv_heads * m.head_dim + 3 * m.d_model * m.d_ff)
    weights = 2 * rows * (matrices + m.d_model * m.vocab_size)
    keys = [prompts().tokens.shape[1] + width for width in ([70 // 2, 70] if more else [cfg.rollout.max_new_tokens])]
    for found, width in zip(one.loops, keys, strict=True):
        attention = 2 * 2 * rows * m.n_layers * m.n_heads * m.head_dim * width
        mixing = 2 * rows * cfg.rollout.latent.k * m.d_model
        assert weights < found <= weights + attention + mixing + 2 * rows * m.n_layers * m.n_heads * m.head_dim * 8


def test_totals_go_on_over_restarts_and_end_where_something_cannot_be_counted():
    cfg = tiny(model__n_layers=1, rollout__max_new_tokens=6, rollout__latent__max_latent=2)
    first = Compute({})
    update = first.program(train_step, fresh_state(cfg), train_batch(cfg), cfg=cfg).of()
    first.add(update)
    assert update > 0 and first.metrics(3.0, 1.0) == {"perf/seconds_total": 2.0, "perf/flop_total": update}
    again = Compute(first.totals())
    again.add(update)
    assert again.metrics(0.5, 0.0) == {"perf/seconds_total": 2.5, "perf/flop_total": 2 * update}
    again.add(None)
    assert Compute(again.totals()).metrics(1.0, 0.0) == {"perf/seconds_total": 3.5}


def test_an_update_of_two_slices_costs_what_one_costs():
    cfg = tiny(model__n_layers=1, rollout__max_new_tokens=6)
    costs = []
    for size in (0, 2):
        costs.append(Compute({}).program(train_step, fresh_state(cfg), train_batch(cfg), cfg=change(cfg, train__microbatch=size)).of())
    assert np.isclose(*costs, rtol=1e-6)


def test_the_kl_beside_a_score_gradient_takes_no_second_pass():
    """The same products as with the plain gradient: both log-probs come from one pass. And each term keeps its own gradient."""
    cfg = tiny(model__n_layers=1, rollout__max_new_tokens=6, rollout__latent__max_latent=3, rollout__latent__law__one_sided=False)
    cfg = change(cfg, train__diagnostics="off")
    batch, start, other = train_batch(cfg), params(cfg.model), params(cfg.model, 1)
    batch = batch.replace(advantages=jnp.where(batch.loss_mask, -1.0, 0.0))  # below 0, where the score gradient differs
    found, flops = {}, []
    for gradient in ("plain", "bounded"):
        for weight in (0.0, 0.5):
            one = change(cfg, rollout__latent__law__score_gradient=gradient, algo__kl_coef=weight)
            state = fresh_state(one, start).replace(reference=other if weight else None)
            flops.append(Compute({}).program(train_step, state, batch, cfg=one).of())
            terms = jax.jit(
                jax.grad(
                    lambda p, one=one, weight=weight: _policy_terms(p, batch, batch.rollout.logps, other if weight else None, one)[0].total
                )
            )
            found[gradient, weight] = terms(start)
    assert flops[:2] == flops[2:]
    kl = [jax.tree.map(lambda a, b: a - b, found[gradient, 0.5], found[gradient, 0.0]) for gradient in ("plain", "bounded")]
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(kl[0]))
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found["plain", 0.0], found["bounded", 0.0])
    assert size > 1e-3 and max(jax.tree.leaves(apart)) > 1e-3 * size, "nothing to tell apart"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * size), *kl)
