"""What a law must do to be one of ours, and that one of a user's own needs nothing from lgrpo but the protocol."""

import re
from pathlib import Path

import bag
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import latent as oracle
from support import assert_rounding, chi_square

from lgrpo.config import LatentConfig
from lgrpo.config.overrides import load_experiment, parse_overrides
from lgrpo.latent.law import Step, TokenLogps
from lgrpo.latent.laws.gaussian import Gaussian
from lgrpo.report import trace_view
from lgrpo.runs.checkpoint import saved_config
from lgrpo.runs.metrics import read_metrics
from lgrpo.train import rl

ROOT = Path(__file__).parents[2]
END, K, ROWS = 2, 3, 20_000


@pytest.fixture(scope="module")
def drawn():
    """(settings, logits [V], a draw for ROWS equal rows, of which the last has no noise)."""
    c = LatentConfig(k=K, tau=0.7, law=Gaussian(sigma=0.5))
    logits = np.array([1.0, 0.2, 1.4, -1.0, 0.7, -3.0], np.float32)
    scale = np.ones(ROWS, np.float32)
    scale[-1] = 0.0
    choice = jax.jit(lambda z, keys, s: c.law.draw(c, z, keys, s, END))(
        jnp.tile(logits, (ROWS, 1)), jax.random.split(jax.random.key(0), ROWS), scale
    )
    return c, logits, jax.device_get(choice)


def test_the_gaussian_law_ends_with_the_mixtures_weight_of_the_end(drawn):
    c, logits, choice = drawn
    p = np.exp(oracle.log_softmax(logits / c.tau))
    ends = choice.ids[:-1, 0] == END
    assert chi_square([ends.sum(), (~ends).sum()], [p[END], 1 - p[END]]) > 1e-3
    kept = p[[0, 4, 1]] / p[[0, 4, 1]].sum()  # the likeliest without the end
    np.testing.assert_array_equal(choice.ids[:-1][~ends], np.tile([0, 4, 1], ((~ends).sum(), 1)))
    np.testing.assert_allclose(choice.weights[0], kept, rtol=1e-5)
    assert choice.ids[-1, 0] == END and not choice.scores[-1].any()  # without noise the likeliest token decides: here the end


def test_the_record_regenerates_the_noise(drawn):
    """Standard normal in every coordinate, another for every row; the mixture is the mean, and a record without seeds has no noise."""
    c, _, choice = drawn
    table = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)) * 0.3, jnp.float32)
    rows = choice.ids[:, 0] != END
    step = Step(choice.ids[rows], choice.scores[rows], choice.weights[rows])
    scale = jnp.ones(rows.sum())
    fed = np.asarray(c.law.mix(c, table, step, scale))
    plain = np.asarray(c.law.mix(c, table, step._replace(scores=np.zeros_like(step.scores)), scale))
    assert_rounding(plain, step.weights @ np.asarray(table)[step.ids[0]])
    noise = (fed - plain) / (0.5 * np.sqrt(np.mean(np.square(table))))
    np.testing.assert_allclose(np.cov(noise.T), np.eye(8), atol=0.05)
    assert np.abs(noise.mean(0)).max() < 0.05 and len(np.unique(noise[:, 0])) > 0.99 * len(noise)
    np.testing.assert_array_equal(fed, c.law.mix(c, table, step, scale))


def test_the_gaussian_log_prob_moves_with_the_mixture_only(drawn):
    """Gradient in the log-probs of the tokens: (noise + shift) times the embeddings; the same factor on all of them changes nothing."""
    c, _, choice = drawn
    table = jnp.asarray(np.random.default_rng(1).normal(size=(6, 8)), jnp.float32)
    row = int(np.flatnonzero(choice.ids[:, 0] != END)[0])
    step = Step(choice.ids[row], choice.scores[row], choice.weights[row])

    def logp(chosen, end=-2.0):
        return c.law.logp(c, step, TokenLogps(chosen, None, end=jnp.asarray(end)), jnp.asarray(1.0), table=table)

    chosen = jnp.log(step.weights)
    np.testing.assert_allclose(logp(chosen), logp(chosen - 3.0), rtol=1e-5)
    assert logp(chosen, end=-20.0) - logp(chosen) == pytest.approx(-np.log1p(-np.exp(-2.0)), abs=1e-5)
    deviation = 0.5 * np.sqrt(np.mean(np.square(table)))
    noise = (c.law.mix(c, table, step, jnp.asarray(1.0)) - step.weights @ table[step.ids]) / deviation
    pull = np.asarray(table)[step.ids] @ np.asarray(noise) / deviation  # d logp / d weights at no shift
    np.testing.assert_allclose(jax.jit(jax.grad(logp))(chosen), step.weights * (pull - step.weights @ pull), rtol=1e-3, atol=1e-4)


EXPERIMENT = """
from lgrpo.config import *

def get_config():
    return ExperimentConfig(
        name="own",
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        data=DataConfig(difficulty="mini", max_prompt=32),
        rollout=RolloutConfig(group_size=4, max_new_tokens=6, latent=LatentConfig(k=4, max_latent=2)),
        algo=AlgoConfig(invalid="keep"),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(num_steps=2, prompts_per_step=8),
        checkpoint=CheckpointConfig(every=2),
        logging=LoggingConfig(tensorboard=False, progress=False),
    )
"""


def test_the_example_in_the_documents_is_the_law_that_is_tested():
    page = (ROOT / "docs" / "extending.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class Bag" in block)
    assert code == Path(bag.__file__).read_text()
    assert len(code.splitlines()) < 40


def test_a_law_of_a_users_own_is_trained_resumed_and_traced(tmp_path, capsys, monkeypatch):
    """From a file that lgrpo does not know, named on the command line; the checkpoint alone says which law it was."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(EXPERIMENT)
    (tmp_path / "my_laws.py").write_text(Path(bag.__file__).read_text())
    law = ["--rollout.latent.law", "my_laws.py:Bag", "--rollout.latent.law.temperature", "1.3", "--data.data-dir", str(tmp_path / "tfds")]

    def config(steps):
        return parse_overrides(load_experiment("own.py"), [*law, "--train.num-steps", str(steps)])

    assert rl.run(config(2), tmp_path / "w") == 0
    assert rl.run(config(3), tmp_path / "w") == 0
    metrics = read_metrics(tmp_path / "w")
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert all(row["policy/replay_gap"] < 1e-4 for row in metrics) and metrics[0]["rollout/latent_steps"] > 0
    assert "diag/misaligned_share" in metrics[0] and "diag/margin_hist_0_to_1" not in metrics[0]  # it keeps no scores
    saved = saved_config(tmp_path / "w")
    assert saved.rollout == config(3).rollout and type(saved.rollout.latent.law).__name__ == "Bag"
    capsys.readouterr()
    assert trace_view.run(saved, tmp_path / "w", problems="1", out=tmp_path / "t.html") == 0
    assert "Bag(temperature=1.3)" in (tmp_path / "t.html").read_text()
