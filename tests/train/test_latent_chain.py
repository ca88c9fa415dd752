"""The Latent-SFT chain: label sets beside the data, their refusal, validation and early stopping, and the whole way after a kill at every stage."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal

import jax
import numpy as np
import pytest
from flax import traverse_util
from support import assert_rounding, change

from lgrpo.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LatentConfig,
    LoggingConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
)
from lgrpo.data import labels as label_files
from lgrpo.data import word_problems
from lgrpo.data.pipeline import sft_stream
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.errors import UserError
from lgrpo.models.spec import abstract_params
from lgrpo.runs import checkpoint
from lgrpo.runs.checkpoint import load_params, saved_extra
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.runs.metrics import read_metrics
from lgrpo.runs.stored import stored_arrays
from lgrpo.train import chain, sft
from lgrpo.train import labels as label_pass
from lgrpo.train.setup import open_session
from lgrpo.train.steps.sft import sft_weights


def config(data, stage="latent"):
    return ExperimentConfig(
        name=f"chain_{stage}",
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16),
        data=DataConfig(source="jsonl", path=str(data), max_prompt=32, eval_split="valid"),
        rollout=RolloutConfig(max_new_tokens=6, latent=LatentConfig(k=4, max_latent=2)),
        sft=SftConfig(stage=stage, compression=4, max_chain=16, max_answer=4, batch_size=16, label_noise=0.5, heldout=16),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(num_steps=3),
        checkpoint=CheckpointConfig(every=1),
        evaluation=EvaluationConfig(every=0),
        logging=LoggingConfig(tensorboard=False, progress=False),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 records to train on (the last batch of the label pass is short), 16 held out."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 40), ("valid", 16)):
        lines = [json.dumps(word_problems.generate("mini", split, i)) for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def run_chain(data, workdir):
    return chain.run(lambda stage: config(data, stage), workdir, "all")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A chain that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    assert run_chain(data, workdir) == 0
    return workdir


def resolved(cfg):
    return resolve(cfg, load_tokenizer(cfg.data))


def policy(path, cfg):
    return load_params(path, abstract_params(resolved(cfg).model))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the program catches it or saves because of it."""


def test_the_chain_goes_on_after_a_kill_at_every_stage(data, whole, tmp_path, monkeypatch):
    honest_step, honest_write = sft.sft_step, label_files.write_labels
    calls = {"step": 0, "write": 0}

    def step(state, batch, *, cfg):
        calls["step"] += 1
        if calls["step"] in (2, 8):  # encoder, union: killed in the second step
            raise KilledError
        if calls["step"] in (5, 12):  # decoder, latent: asked to stop
            os.kill(os.getpid(), signal.SIGTERM)
        return honest_step(state, batch, cfg=cfg)

    def write(*args, **kwargs):
        calls["write"] += 1
        if calls["write"] == 2:  # between the two splits
            raise KilledError
        honest_write(*args, **kwargs)

    step.trace = honest_step.trace  # its cost is counted
    monkeypatch.setattr(sft, "sft_step", step)
    monkeypatch.setattr(label_pass.labels, "write_labels", write)
    outcomes = []
    while not outcomes or outcomes[-1] != 0:
        try:
            outcomes.append(run_chain(data, tmp_path))
        except KilledError:
            outcomes.append("killed")
        assert len(outcomes) < 8
    assert sorted(map(str, outcomes)) == ["0", "75", "75", "killed", "killed", "killed"] and EXIT_PREEMPTED == 75
    for stage in ("union", "latent"):
        assert_same(policy(tmp_path / stage, config(data)), policy(whole / stage, config(data)))
    for split in ("train", "valid"):
        ours, theirs = (np.load(folder / "labels" / split / "labels.npz") for folder in (tmp_path, whole))
        assert_same(dict(ours), dict(theirs))


def test_a_finished_chain_does_nothing_more(data, whole, monkeypatch):
    def never(*_, **__):
        raise AssertionError("worked again")

    monkeypatch.setattr(sft, "sft_step", never)
    monkeypatch.setattr(label_pass, "label_batch", never)
    assert run_chain(data, whole) == 0


def latent_config(data, whole):
    cfg = change(config(data), sft__labels="encoder", sft__label_path=str(whole / "labels"))
    return resolved(cfg)


def test_labels_stand_beside_their_records(data, whole):
    """In any order of the stream, and as the encoder gives them."""
    cfg = latent_config(data, whole)
    batch = next(sft_stream(cfg, load_tokenizer(cfg.data), "train", batch=16))
    stage1 = change(cfg, sft__stage="union")
    target = jax.eval_shape(lambda: checkpoint_params(whole / "union"))
    params = load_params(whole / "union", target)
    ids, probs = label_pass.label_batch(params, batch, cfg=stage1)
    np.testing.assert_array_equal(batch["label_ids"], ids)
    np.testing.assert_allclose(batch["label_probs"], probs, atol=1e-6)
    np.testing.assert_array_equal(batch["label_mask"], np.asarray(probs).sum(-1) > 0.5)
    assert batch["label_mask"].sum() == (-(-batch["chain_mask"].sum(1) // 4)).sum()
    assert cfg.data.think_end_id not in batch["label_ids"]
    manifest = label_files.read_manifest(whole / "labels" / "train")
    assert manifest["k"] == 4 and manifest["source"]["step"] == 3 and manifest["config"]["sft"]["stage"] == "union"


def checkpoint_params(path):
    """The stored tree of a stage 1 run, zeros."""
    manager, _ = checkpoint._open(path)
    with manager:
        stored = stored_arrays(manager, manager.latest_step(), "params")
        return traverse_util.unflatten_dict({name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in stored.items()}, sep=".")


def test_labels_survive_a_round_trip(tmp_path, data):
    cfg = change(resolved(config(data)), sft__label_path=str(tmp_path))
    tokenizer = load_tokenizer(cfg.data)
    rng = np.random.default_rng(0)
    uid = rng.permutation(50)[:9]
    ids, probs = rng.integers(0, 90, (9, 4, 4)), rng.dirichlet(np.ones(4), (9, 4)).astype(np.float32)
    manifest = label_files.requirements(cfg, tokenizer, "train", "f00d", 9)
    label_files.write_labels(tmp_path / "train", manifest, uid=uid, ids=ids, probs=probs)
    asked = np.sort(uid)
    found = label_files.load_labels(cfg, tokenizer, "train", fingerprint="f00d", uid=asked, latents=6)
    order = np.argsort(uid)
    np.testing.assert_array_equal(found.ids[:, :4], ids[order])
    np.testing.assert_array_equal(found.probs[:, :4], probs[order])
    assert not found.probs[:, 4:].any()
    file = tmp_path / "train" / "labels.npz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        label_files.load_labels(cfg, tokenizer, "train", fingerprint="f00d", uid=asked, latents=6)


def test_a_stream_does_not_go_on_with_other_labels(data, whole, tmp_path):
    """Written again under the same manifest, by an encoder that was trained a little further, say."""
    cfg, tokenizer = latent_config(data, whole), load_tokenizer(DataConfig())
    stream = sft_stream(cfg, tokenizer, "train", batch=16)
    next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    source, copy = whole / "labels" / "train", tmp_path / "labels" / "train"
    manifest = {k: v for k, v in label_files.read_manifest(source).items() if k != "content"}
    with np.load(source / label_files.ARRAYS) as file:
        arrays = dict(file)
    for factor in (1, 0.5):
        label_files.write_labels(copy, manifest, uid=arrays["uid"], ids=arrays["ids"], probs=arrays["probs"] * factor)
        other = sft_stream(change(cfg, sft__label_path=str(tmp_path / "labels")), tokenizer, "train", batch=16)
        if factor == 1:  # elsewhere, but the same
            other.set_state(state)
            continue
        with pytest.raises(UserError, match=r"does not fit this stream .*labels"):
            other.set_state(state)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rollout__latent__k": 3}, "k is 4 in the labels and 3 here"),
        ({"sft__compression": 2}, "compression is 4 in the labels and 2 here"),
        ({"data__max_prompt": 20}, "records is 40 in the labels"),
        ({"data__template": "instruct", "data__max_prompt": 64, "sft__max_answer": 8}, "data is '"),
        ({"sft__label_path": "/nowhere"}, "no labels of split 'train'"),
    ],
)
def test_labels_of_something_else_are_refused(data, whole, changes, says):
    cfg = change(latent_config(data, whole), **changes)
    with pytest.raises(UserError, match=says):
        sft_stream(cfg, load_tokenizer(cfg.data), "train", batch=16)


def test_labels_of_another_tokenizer_are_refused(data, whole, tmp_path):
    cfg = latent_config(data, whole)
    inner = load_tokenizer(cfg.data).inner
    inner.add_tokens(["another"])
    inner.save(str(tmp_path / "tokenizer.json"))
    other = change(cfg, data__tokenizer=str(tmp_path))
    with pytest.raises(UserError, match="tokenizer is '"):
        sft_stream(other, load_tokenizer(other.data), "train", batch=16)


def test_a_stage_by_itself_wants_the_one_before_it(data, tmp_path):
    for stage, needs in (("decoder", "encoder"), ("labels", "union"), ("latent", "union")):
        with pytest.raises(UserError, match=f"stage {needs} has not finished"):
            chain.run(lambda name: config(data, name), tmp_path, stage)
    with pytest.raises(UserError, match="no such stage"):
        chain.run(lambda name: config(data, name), tmp_path, "both")


def test_stage_1_trains_what_its_phase_says(data, whole):
    start = jax.eval_shape(lambda: checkpoint_params(whole / "union"))
    encoder, decoder, union = (load_params(whole / stage, start) for stage in ("encoder", "decoder", "union"))
    assert_same(encoder["encoder"], decoder["encoder"])
    moved = [bool((np.asarray(a) != np.asarray(b)).any()) for a, b in zip(jax.tree.leaves(encoder), jax.tree.leaves(decoder), strict=True)]
    assert any(moved)
    assert bool((np.asarray(union["encoder"]["compress"]) != np.asarray(decoder["encoder"]["compress"])).any())
    assert_same(policy(whole / "union", config(data)), union["decoder"])


def test_validation_and_early_stop(data, tmp_path, monkeypatch):
    """Stops `patience` evaluations after the best, keeps the best, and stays stopped."""
    cfg = change(config(data), evaluation__every=1, sft__patience=2, sft__lora=LoraConfig(rank=2), checkpoint__every=0, checkpoint__keep=1)
    cfg = change(cfg, train__num_steps=9, evaluation__problems=16, evaluation__batch=16, evaluation__samples=1)
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.9])

    def measured(session, params, done, stop):
        assert "blocks" in params, "adapters are merged for the rollout"
        return {"eval/pass@1": 0.0, "eval/pass@1_sampled": next(scores)}

    monkeypatch.setattr(sft, "evaluation_metrics", measured)
    assert sft.run(cfg, tmp_path) == 0
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all({"sft/heldout_kl", "sft/heldout_ce"} <= row.keys() for row in rows)
    assert checkpoint.saved_step(tmp_path, best=True) == 2 and checkpoint.saved_step(tmp_path) == 4
    assert saved_extra(tmp_path)["finished"]
    assert sft.run(cfg, tmp_path) == 0
    assert len(read_metrics(tmp_path)) == 4
    # The best one is what another run starts from.
    target = abstract_params(resolved(cfg).model)
    best, last = load_params(tmp_path, target, best=True), load_params(tmp_path, target)
    assert (np.asarray(best["blocks"]["wq"]) != np.asarray(last["blocks"]["wq"])).any()
    # Both are the state's adapters on their base; checkpoints of before do not say their scale.
    session = open_session(cfg, tmp_path, rl=False)
    want = sft_weights(session.state.params, session.cfg)
    scaled = saved_extra(tmp_path)
    for extra in (scaled, {name: x for name, x in scaled.items() if name != "adapter_scale"}):
        session.checkpoints.amend(4, extra=extra, metric=0.1)
        assert_rounding(load_params(tmp_path, target), jax.device_get(want), units=8)
    session.close()
    then = change(cfg, train__init_from=str(tmp_path), train__init_best=True, train__num_steps=1, sft__lora=LoraConfig(), optim__lr=1e-30)
    scores = iter([0.5])
    assert sft.run(dataclasses.replace(then, name="next"), tmp_path / "next") == 0
    found = load_params(pathlib.Path(tmp_path / "next"), target)
    np.testing.assert_allclose(found["blocks"]["wq"], best["blocks"]["wq"], atol=1e-6)
