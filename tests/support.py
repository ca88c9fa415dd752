"""What the method's tests share: golden files, tiny configs and prompts, and chi-square tests. If `tiny` breaks, half of the suite does."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from lgrpo.config import ExperimentConfig, LatentConfig, ModelConfig, RolloutConfig
from lgrpo.latent.replay import replay_logps
from lgrpo.latent.rollout import rollout
from lgrpo.models.decoder import compute_params
from lgrpo.models.spec import init_params
from lgrpo.train.steps.rl import group, make_train_batch
from lgrpo.train.steps.update import init_state
from lgrpo.types import PromptBatch

GOLDEN = Path(__file__).parent / "golden"
END, EOS, VOCAB = 3, 2, 24


@functools.cache
def golden(name):
    """Arrays of tests/golden/<name>.npz."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def change(cfg, **fields):
    """replace() through double-underscore paths: change(cfg, rollout__latent__k=2)."""
    for path, value in fields.items():
        head, _, rest = path.partition("__")
        cfg = dataclasses.replace(cfg, **{head: change(getattr(cfg, head), **{rest: value}) if rest else value})
    return cfg


def tiny(**fields):
    """An experiment that compiles in a second or two; `fields` as in `change`. float32, so that numbers can be compared."""
    cfg = ExperimentConfig(
        model=ModelConfig(vocab_size=VOCAB, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24, init_scale=1.5),
        rollout=RolloutConfig(group_size=4, max_new_tokens=8, latent=LatentConfig(k=4, max_latent=4)),
    )
    cfg = change(cfg, data__think_end_id=END, data__eos_id=EOS, data__max_prompt=5, train__prompts_per_step=4)
    return change(cfg, **fields)


def prompts(count=4, length=5, seed=0, pad=0):
    """Random prompts of different lengths, padded on the left to length + pad. The tokens do not depend on pad."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((count, length + pad), np.int32)
    mask = np.zeros((count, length + pad), bool)
    for row in range(count):
        size = length - row % 3
        mask[row, length + pad - size :] = True
        tokens[row, length + pad - size :] = rng.integers(4, VOCAB, size)
    return PromptBatch(tokens, mask, np.arange(10, 10 + count, dtype=np.int32))


INIT = jax.jit(init_params, static_argnums=0)  # op by op every tensor has programs of its own


@functools.cache
def params(model, seed=0):
    """Random weights, one set per model config; both end tokens are likelier than others, or hardly any completion would end."""
    weights = INIT(model, jax.random.key(seed))
    return weights | {"unembed": weights["unembed"].at[:, np.array([END, EOS])].multiply(3.0)}


def assert_rounding(got, want, units=64, size=0.0, err_msg=""):
    """Two programs for one number: apart by the order of sums alone, which compilers and processors choose. Trees, leaf by leaf.

    units: of float32's eps, at the largest magnitude of a leaf or at `size`, that of what was added up on the way, whichever is larger.
    Bit for bit (assert_array_equal) is for one program on the same numbers: a run that is resumed.
    """

    def close(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        largest = max(size, np.abs(y[np.isfinite(y)]).max(initial=0.0))
        np.testing.assert_allclose(x, y, rtol=0, atol=units * float(np.finfo(np.float32).eps) * largest, err_msg=err_msg)

    jax.tree.map(close, got, want)


def chi_square(counts, probs):
    """p-value that `counts` follow `probs`; cells with fewer than 5 expected are pooled. Impossible cells must be empty."""
    counts, probs = np.asarray(counts, float), np.asarray(probs, float)
    assert counts[probs == 0].sum() == 0
    expected = probs / probs.sum() * counts.sum()
    small = expected < 5
    observed = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    return stats.chisquare(observed[keep], expected[keep]).pvalue


ROLL = jax.jit(
    lambda p, x, key, noise_scale, cfg: rollout(compute_params(p, cfg.model), x, key, cfg=cfg, noise_scale=noise_scale),
    static_argnames="cfg",
)

REPLAY = jax.jit(replay_logps, static_argnames="cfg")  # op by op it takes seconds


def roll(cfg, batch=None, seed=0, weights=None, noise_scale=None):
    """A rollout with random weights, as NumPy arrays [N, ...]."""
    batch = prompts() if batch is None else batch
    weights = params(cfg.model) if weights is None else weights
    return jax.device_get(ROLL(weights, batch, jax.random.key(seed), noise_scale, cfg=cfg))


def train_batch(cfg, batch=None, seed=0, weights=None):
    """A graded rollout with random rewards and validity."""
    batch = prompts() if batch is None else batch
    record = roll(cfg, batch, seed, weights)
    rng = np.random.default_rng(seed)
    shape = (len(batch.uid), cfg.rollout.group_size)
    rewards, valid = rng.integers(0, 2, shape).astype(np.float32), rng.random(shape) < 0.8
    return make_train_batch(batch, group(record, cfg.rollout.group_size), rewards, valid, cfg=cfg)


def fresh_state(cfg, weights=None):
    """A new TrainState that may be donated: its arrays are copies."""
    weights = params(cfg.model) if weights is None else weights
    return init_state(jax.tree.map(lambda x: jnp.array(np.asarray(x)), weights), cfg, rl=True)


def first_moments(state, b1=0.9):
    """The gradients of the first update, read from AdamW's first moment: {path: array}. Needs a clip_norm that does not bite."""
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return {k.split(".mu")[1]: np.asarray(x) / (1 - b1) for k, x in ((jax.tree_util.keystr(p), x) for p, x in leaves) if ".mu[" in k}
