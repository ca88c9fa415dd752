"""Padding that no row needs can be cut: the same samples, loss and gradients. Breaks when a column is cut on the wrong side or is used after all."""

import jax
import numpy as np
import pytest
from support import assert_rounding, change, first_moments, fresh_state, params, prompts, roll, tiny, train_batch

from lgrpo.config import MeshConfig
from lgrpo.evaluation.measure import sample
from lgrpo.evaluation.passes import Pass
from lgrpo.latent.buckets import bucket, trim_completions, trim_prompts
from lgrpo.sharding import make_mesh
from lgrpo.train.steps.rl import train_step

CFG = tiny(rollout__group_size=4, rollout__max_new_tokens=8, rollout__latent__max_latent=2, optim__clip_norm=1e9)


def test_bucket():
    assert [bucket(n, 4, 10) for n in (0, 1, 4, 5, 9, 10)] == [4, 4, 4, 8, 10, 10]
    assert bucket(3, 0, 10) == 10


def test_prompts_are_cut_on_the_left_to_what_the_batch_needs():
    wide = prompts(pad=7)
    cut = trim_prompts(wide, 3)
    assert cut.tokens.shape == (4, 6) and trim_prompts(wide, 0) is wide
    np.testing.assert_array_equal(cut.tokens, prompts(pad=1).tokens)
    a, b = roll(CFG, wide), roll(CFG, cut)
    for name in ("ids", "mask", "finish"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert_rounding(a.logps, b.logps)


def test_a_shorter_learner_has_the_same_gradient():
    batch = train_batch(CFG)
    # No completion beyond the fifth step, so that there is something to cut.
    short = jax.tree.map(lambda x: np.where(np.arange(8)[(...,) + (None,) * (x.ndim - 3)] < 5, x, 0) if x.ndim > 2 else x, batch.rollout)
    batch = batch.replace(rollout=short, loss_mask=np.asarray(batch.loss_mask) & short.mask)
    cut = trim_completions(short, 3)
    assert cut.mask.shape == (4, 4, 6) and cut.ids.shape == (4, 4, 6, 4) and cut.finish.shape == (4, 4)
    other = batch.replace(rollout=cut, loss_mask=batch.loss_mask[..., :6], advantages=np.asarray(batch.advantages)[..., :6])
    (a, metrics), (b, others) = (train_step(fresh_state(CFG), x, cfg=CFG) for x in (batch, other))
    assert metrics["grad/norm"] > 1e-3
    for name in metrics:
        np.testing.assert_allclose(metrics[name], others[name], atol=1e-5, rtol=1e-4, err_msg=name)
    a, b = first_moments(a), first_moments(b)
    for path in a:
        np.testing.assert_allclose(a[path], b[path], atol=1e-5, rtol=1e-4, err_msg=path)


@pytest.mark.parametrize("count", [8, 3])
def test_evaluation_in_buckets(count):
    """Also with a batch that does not divide over the mesh."""
    cfg, mesh = change(CFG, evaluation__samples=4), make_mesh(MeshConfig(data=8))
    trimmed = change(cfg, data__prompt_bucket=2)
    how = Pass("sampled", 1.0, samples=4, chunk=4)
    with jax.set_mesh(mesh):
        a, b = (sample(params(c.model), c, mesh, how, prompts(count, pad=3)) for c in (cfg, trimmed))
    for name in ("ids", "mask", "finish", "thought"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
