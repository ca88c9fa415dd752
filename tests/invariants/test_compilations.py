"""Runs that differ in numbers only share all their programs. Breaks when a step's static part holds a number, a name or a seed again.

Whole runs in one process, with evaluation and checkpoints: the second one must compile nothing.
"""

import dataclasses
from operator import attrgetter

import jax
import numpy as np
import pytest
from support import change, fresh_state, tiny, train_batch

from lgrpo.config import (
    AlgoConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LatentConfig,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
)
from lgrpo.config.reads import Reads, Wants
from lgrpo.config.settings import LoraConfig
from lgrpo.keys import Stream, key_for
from lgrpo.runs.compiling import CompileClock
from lgrpo.train import rl, sft
from lgrpo.train.steps.rl import make_train_batch, rollout_step, train_step, winner_step
from lgrpo.train.steps.sft import sft_losses, sft_step


def config(folder):
    return ExperimentConfig(
        name="base",
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        data=DataConfig(difficulty="mini", data_dir=str(folder / "tfds"), max_prompt=32),
        rollout=RolloutConfig(group_size=4, max_new_tokens=4, latent=LatentConfig(k=4, max_latent=1)),
        algo=AlgoConfig(kl_coef=0.1, lora=LoraConfig(rank=2)),
        sft=SftConfig(max_chain=16, max_answer=4, batch_size=16, stage="latent", compression=4, label_noise=0.5, heldout=16),
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(num_steps=2, prompts_per_step=8),
        checkpoint=CheckpointConfig(every=0),
        evaluation=EvaluationConfig(every=2, problems=8, samples=1, batch=8),
        logging=LoggingConfig(tensorboard=False, progress=False),
        mesh=MeshConfig(data=8),
    )


CHANGES = {
    "name": {"name": "other"},
    "seed": {"seed": 7},
    "lr": {"optim__lr": 3e-4},
    "clip_norm": {"optim__clip_norm": 0.5},
    "clip": {"algo__clip_low": 0.1, "algo__clip_high": 0.3, "algo__dual_clip": 5.0},
    "negative_weight": {"algo__negative_weight": 0.5},
    "kl_coef": {"algo__kl_coef": 0.3},
    "kl_weight": {"sft__kl_weight": 0.5},
}


@pytest.mark.parametrize("kind", ["rl", "sft"])
def test_an_ablation_over_numbers_compiles_nothing_twice(kind, tmp_path):
    run = (rl if kind == "rl" else sft).run
    base = config(tmp_path)
    clock = CompileClock()
    try:
        assert run(base, tmp_path / "base") == 0
        assert clock.programs > 1, "nothing is counted"
        before = clock.programs
        for fields in CHANGES.values():  # at once: whatever of it is static compiles something
            base = change(base, **fields)
        assert run(base, tmp_path / "other") == 0
        assert clock.programs == before, f"{clock.programs - before} programs were compiled again"
    finally:
        clock.close()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("program", [rollout_step, make_train_batch, winner_step, train_step, sft_losses, sft_step])
def test_no_number_is_static(program, name, tmp_path):
    """Each by itself, to name the one that is."""
    base = config(tmp_path)
    assert jax.tree.structure(program.view(base)) == jax.tree.structure(program.view(change(base, **CHANGES[name])))


def test_the_numbers_are_read_all_the_same():
    """What is no longer static must still have its effect."""
    cfg = tiny(model__n_layers=1, rollout__max_new_tokens=4, rollout__latent__max_latent=2, optim__lr=1e-2, algo__kl_coef=0.2)
    batch = train_batch(cfg)
    # Behaviour log-probs that are off by as much as it takes to meet every clip.
    shift = np.random.default_rng(0).uniform(-2.5, 1.0, np.shape(batch.advantages)).astype(np.float32)
    batch = batch.replace(rollout=batch.rollout.replace(logps=batch.rollout.logps + shift))

    def moved(**fields):
        state, metrics = train_step(fresh_state(change(cfg, **fields)), batch, cfg=change(cfg, **fields))
        return jax.device_get(state.params["blocks"]["wq"]), {n: float(x) for n, x in metrics.items()}

    weights, metrics = moved()
    assert (moved(optim__lr=2e-2)[0] != weights).any() and moved(optim__lr=2e-2)[1]["optim/lr"] == pytest.approx(2e-2)
    for name, value in {"clip_low": 0.01, "clip_high": 0.01, "dual_clip": 1.5, "negative_weight": 0.5}.items():
        assert moved(**{f"algo__{name}": value})[1]["policy/loss"] != metrics["policy/loss"], name


@pytest.mark.parametrize(
    ("fields", "advantages", "update"),
    [
        ({"algo__invalid": "exclude", "algo__baseline": "leave_one_out", "algo__scale": "none", "algo__first_token": False}, False, True),
        ({"algo__winner_score": "latent_mean", "algo__winner_must_be_valid": False, "algo__lone_survivor": "reward"}, False, True),
        ({"algo__ratio": "sequence", "algo__loss_mean": "sequence", "algo__old_logps": "replay"}, True, False),
    ],
)
def test_how_advantages_are_made_does_not_shape_the_update_nor_the_reverse(fields, advantages, update):
    """An ablation over the one shares the program of the other."""
    base, other = ExperimentConfig(), change(ExperimentConfig(), **fields)
    for program, same in ((make_train_batch, advantages), (train_step, update)):
        assert (program.view(base) == program.view(other)) is same


def test_a_view_refuses_what_was_not_declared():
    view = Wants(("algo", "model.d_model"), arrays=("algo.kl_coef",), unread=("algo.dynamic",)).of(ExperimentConfig(), fact=3)
    assert view.algo.clip_low == 0.2 and view.algo.kl_coef == 0 and view.fact == 3 and view.model.d_model > 0
    for path in ("name", "algo.dynamic", "model.n_layers"):
        with pytest.raises(AttributeError, match=path):
            attrgetter(path)(view)


def test_views_are_equal_where_their_static_parts_are():
    wants = Wants(("model", "optim"), arrays=("optim.lr",))
    a, b, c = (
        wants.of(dataclasses.replace(ExperimentConfig(), name=n, optim=o))
        for n, o in (("a", OptimConfig(lr=1.0)), ("b", OptimConfig(lr=2.0)), ("c", OptimConfig(lr=1.0, b1=0.5)))
    )
    assert jax.tree.structure(a) == jax.tree.structure(b) != jax.tree.structure(c)
    assert hash(a) == hash(b) and a != b and isinstance(jax.tree.map(lambda x: x + 1, a), Reads)
    assert float(jax.tree.map(lambda x: x + 1, a).optim.lr) == 2.0


@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5, 2**32 - 1])
def test_keys_of_seeds_are_those_of_jax(seed):
    want = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 3), int(Stream.ROLLOUT))
    for given in (seed, np.uint32(seed)):
        np.testing.assert_array_equal(jax.random.key_data(key_for(given, 3, Stream.ROLLOUT)), jax.random.key_data(want))
