"""Every rule fires on its own violation, names field and value, and is silent on what is allowed."""

import re

import pytest

from lgrpo.config import ExperimentConfig, MeshConfig, RopeScaling, presets
from lgrpo.config.overrides import apply_diff, leaves_with_bounds
from lgrpo.config.validate import mesh_sizes, require_valid, validate
from lgrpo.errors import UserError
from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gaussian import Gaussian
from lgrpo.models import presets as model_presets

BASE = ExperimentConfig()
EXACT = {"rollout.latent.law": Exact()}


def problems(changes, devices=1, kind="train"):
    return validate(apply_diff(BASE, changes), device_count=devices, kind=kind)


@pytest.mark.parametrize("kind", ["train", "sft", "eval"])
@pytest.mark.parametrize("devices", [1, 8])
def test_the_defaults_are_valid(kind, devices):
    assert problems({}, devices, kind) == []


@pytest.mark.parametrize(
    "name",
    [
        "PAPER",
        "OFFICIAL",
        "EXACT",
        "NO_INVALID_MASKING",
        "NO_ONE_SIDED",
        "NO_FIRST_TOKEN",
        "NAIVE_LATENT",
        "EXPLICIT",
        "SOFT_GRPO",
        "GAUSSIAN",
    ],
)
def test_every_preset_is_valid(name):
    assert problems(getattr(presets, name), 8) == []


@pytest.mark.parametrize("model", [model_presets.LLAMA_3_2_1B, model_presets.QWEN2_5_MATH_7B, model_presets.QWEN2_5_0_5B])
def test_large_models_fit_a_pod(model):
    tied = {"optim.freeze_embed": True, "optim.freeze_unembed": True}
    assert problems({"model": model, "mesh.fsdp": 32, "mesh.tensor": 2, "train.prompts_per_step": 128, **tied}, 64) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model.n_heads": 5}, "model.n_heads=5"),
        ({"model.head_dim": 15}, "model.head_dim=15"),
        ({"model.vocab_size": 7}, "rollout.latent.k=10"),
        ({"rollout.latent.k": 0}, "rollout.latent.k=0"),
        ({"model.vocab_size": 10, "rollout.latent.min_latent": 1}, "rollout.latent.k=10"),
        ({"rollout.mode": "explicit", "rollout.answer.sampler": "gumbel_top1"}, "rollout.answer.sampler=gumbel_top1"),
        (EXACT | {"rollout.answer.sampler": "gumbel_top1", "rollout.answer.temperature": 0.6}, "rollout.answer.sampler=gumbel_top1"),
        ({"model.tie_embeddings": True, "optim.freeze_embed": True}, "optim.freeze_embed=True"),
        ({"model.rope_scaling": RopeScaling(low_freq_factor=5.0)}, "model.rope_scaling"),
        ({"data.think_end_id": 70, "model.vocab_size": 64}, "data.think_end_id=70"),
        ({"data.eos_id": -2}, "data.eos_id=-2"),
        ({"data.eos_id": 3, "data.think_end_id": 3}, "data.think_end"),
        ({"data.eos": "</think>"}, "data.think_end"),
        ({"data.more_eos": ("</think>",)}, "data.more_eos"),
        ({"data.more_eos_ids": (70,), "model.vocab_size": 64}, "data.more_eos_ids"),
        ({"data.source": "jsonl"}, "data.path=''"),
        ({"rollout.latent.law.clamp": None}, "rollout.latent.law.one_sided=True"),
        ({"rollout.latent.law.clamp": (1.0, 1.0)}, "rollout.latent.law.clamp=(1.0, 1.0)"),
        ({"rollout.latent.law.delta": -0.1}, "rollout.latent.law.delta=-0.1"),
        ({"rollout.latent.tau": 0.0}, "rollout.latent.tau=0.0"),
        ({"rollout.latent.noise_scale": 0.0}, "rollout.latent.noise_scale=0"),
        ({"rollout.latent.noise_scale": -1.0}, "rollout.latent.noise_scale=-1.0"),
        ({"rollout.latent.law.top_p": 0.0}, "rollout.latent.law.top_p=0.0"),
        ({"rollout.latent.law.top_p": 1.1}, "rollout.latent.law.top_p=1.1"),
        ({"rollout.latent.min_latent": 5, "rollout.latent.max_latent": 4}, "rollout.latent.min_latent=5"),
        ({"rollout.latent.max_latent": 32}, "rollout.latent.max_latent=32"),
        ({"rollout.latent.min_latent": 32}, "rollout.latent.min_latent=32"),
        ({"rollout.group_size": 1}, "rollout.group_size=1"),
        ({"rollout.answer.temperature": 0.0}, "rollout.answer.temperature=0.0"),
        ({"rollout.answer.top_p": 0.9}, "rollout.answer.top_p=0.9"),
        ({"rollout.answer.top_k": 5}, "rollout.answer.top_k=5"),
        ({"rollout.answer.sampler": "greedy"}, "rollout.answer.sampler=greedy"),
        ({"evaluation.answer.top_p": 0.0}, "evaluation.answer.top_p=0.0"),
        ({"evaluation.noise_scale": -0.5}, "evaluation.noise_scale=-0.5"),
        ({"algo.kl_coef": -0.1}, "algo.kl_coef=-0.1"),
        ({"algo.clip_low": 1.0}, "algo.clip_low=1.0"),
        ({"algo.clip_high": -0.1}, "algo.clip_high=-0.1"),
        ({"algo.dual_clip": 1.0}, "algo.dual_clip=1.0"),
        ({"algo.lone_survivor": "reward", "algo.invalid": "keep"}, "algo.lone_survivor=reward"),
        ({"rollout.mode": "explicit", "algo.winner_score": "latent_mean"}, "algo.winner_score=latent_mean"),
        ({"optim.lr": 0.0}, "optim.lr=0.0"),
        ({"optim.b2": 1.0}, "optim.b2=1.0"),
        ({"optim.schedule": "cosine", "optim.warmup": 100}, "optim.warmup=100"),
        ({"train.updates_per_step": 3}, "train.prompts_per_step=64"),
        ({"train.microbatch": 24}, "train.prompts_per_step=64"),
        ({"train.num_steps": 0}, "train.num_steps=0"),
        ({"seed": -1}, "seed=-1"),
        ({"mesh.data": 2}, "mesh.data=2"),
        ({"mesh.fsdp": -1}, "mesh.data=-1"),
        ({"checkpoint.keep": 0}, "checkpoint.keep=0"),
    ],
)
def test_each_violation_is_the_only_complaint(changes, field):
    found = problems(changes)
    assert len(found) == 1, found
    assert found[0].startswith(field)
    assert re.search("use|set|give|change", found[0])  # a remedy


GAUSSIAN = {"rollout.latent.law": Gaussian(), "optim.freeze_embed": True}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"optim.freeze_embed": False}, "optim.freeze_embed=False"),
        ({"rollout.answer.sampler": "gumbel_top1"}, "rollout.answer.sampler=gumbel_top1"),
        ({"model.vocab_size": 10}, "rollout.latent.k=10"),
        ({"rollout.latent.law.sigma": 0.0}, "rollout.latent.law.sigma=0.0"),
    ],
)
def test_a_law_says_what_it_cannot_be_combined_with(changes, field):
    assert problems(GAUSSIAN) == []
    (found,) = problems(GAUSSIAN | changes)
    assert found.startswith(field)
    assert problems(GAUSSIAN | changes | {"rollout.mode": "explicit"}) == [] or field.startswith(("rollout.latent.law", "rollout.answer"))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"rollout.answer.top_p": 0.9, "rollout.answer.sampler": "greedy"}, "eval"),
        ({"rollout.latent.noise_scale": 0.0}, "eval"),
        ({"rollout.latent.noise_scale": 0.0}, "sft"),
        ({"rollout.group_size": 1}, "sft"),
        ({"rollout.answer.sampler": "gumbel_top1"}, "train"),
        (EXACT | {"rollout.answer.sampler": "gumbel_top1", "rollout.answer.temperature": 1.0}, "train"),
        ({"evaluation.answer.top_p": 0.9, "evaluation.answer.top_k": 5, "evaluation.answer.sampler": "greedy"}, "train"),
        ({"rollout.mode": "explicit", "rollout.latent.noise_scale": 0.0, "rollout.latent.law.clamp": None}, "train"),
        ({"train.prompts_per_step": 7}, "eval"),
        ({"rollout.latent.k": 1}, "train"),
        ({"algo.lone_survivor": "reward", "algo.invalid": "exclude"}, "train"),
        ({"model.tie_embeddings": True, "optim.freeze_embed": True, "optim.freeze_unembed": True}, "train"),
    ],
)
def test_what_is_allowed(changes, kind):
    assert problems(changes, kind=kind) == []


def test_batches_that_do_not_divide_name_the_nearest_sizes():
    (found,) = problems({"train.prompts_per_step": 60, "train.updates_per_step": 2}, devices=8)
    assert "use 48 or 64" in found
    (found,) = problems({"train.prompts_per_step": 5}, devices=8)
    assert found.endswith("use 8")
    (found,) = problems({"train.microbatch": 12}, devices=8)
    assert found.startswith("train.microbatch=12")
    assert "use 8 or 16" in found
    (found,) = problems({"sft.batch_size": 100}, devices=8, kind="sft")
    assert found.startswith("sft.batch_size=100")
    assert "use 96 or 104" in found
    (found,) = problems({"evaluation.batch": 20}, devices=8, kind="eval")
    assert "use 16 or 24" in found
    assert problems({"evaluation.batch": 20}, devices=8) == []  # no evaluation while training
    assert len(problems({"evaluation.batch": 20, "evaluation.every": 5}, devices=8)) == 1


@pytest.mark.parametrize("size", [48, 64])
def test_the_sizes_that_a_message_proposes_are_valid(size):
    assert problems({"train.prompts_per_step": size, "train.updates_per_step": 2}, devices=8) == []


def test_tensor_axis_must_divide_what_it_splits():
    found = problems({"mesh.tensor": 4, "model.vocab_size": 66}, devices=8)
    assert [p.split("=")[0] for p in found] == ["model.n_kv_heads", "model.vocab_size"]
    assert problems({"mesh.tensor": 2, "model.vocab_size": 66}, devices=8) == []
    assert problems({"mesh.fsdp": 8, "model.d_model": 60}, devices=8)[0].startswith("model.d_model=60")


@pytest.mark.parametrize(
    ("mesh", "sizes"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
        (MeshConfig(data=-1, tensor=3), None),
        (MeshConfig(data=-1, fsdp=-1), None),
        (MeshConfig(data=4), None),
        (MeshConfig(data=-1, fsdp=16), None),
        (MeshConfig(data=0), None),
        (MeshConfig(data=-8), None),
    ],
)
def test_mesh_sizes(mesh, sizes):
    assert mesh_sizes(mesh, 8) == sizes


def test_all_problems_come_at_once_even_when_sizes_are_zero():
    zero = {"train.updates_per_step": 0, "train.microbatch": -1, "model.n_kv_heads": 0, "rollout.max_new_tokens": 0, "evaluation.batch": 0}
    found = problems(zero | {"data.source": "jsonl", "mesh.tensor": 3, "optim.lr": -1})
    assert {p.split("=")[0] for p in found} == {*zero, "data.path", "mesh.data", "optim.lr"}


def test_latent_sft_needs_room_for_a_chunk():
    (found,) = problems({"sft.stage": "latent", "sft.compression": 12}, kind="sft")
    assert found.startswith("sft.compression=12")
    assert problems({"sft.stage": "explicit", "sft.compression": 12}, kind="sft") == []


def test_require_valid_prints_one_problem_per_line():
    with pytest.raises(UserError) as caught:
        require_valid(apply_diff(BASE, {"optim.lr": 0, "rollout.group_size": 1}), device_count=1, kind="train")
    assert len(str(caught.value).splitlines()) == 3
    require_valid(BASE, device_count=1, kind="train")


def test_every_number_has_a_bound_beside_it_or_a_rule_of_its_own():
    own_rule = {
        *("data.think_end_id", "data.eos_id", "algo.dual_clip", "evaluation.noise_scale", "mesh.data", "mesh.fsdp", "mesh.tensor"),
        *("logging.alarms.invalid_above", "logging.alarms.replay_gap_above", "logging.alarms.nan_above"),
        *(f"model.rope_scaling.{name}" for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position")),
    }
    cfg = apply_diff(ExperimentConfig(name="x"), {"model.rope_scaling.factor": 8.0})
    bare = {path for path, value, bounds in leaves_with_bounds(cfg) if type(value) in (int, float) and not bounds}
    assert bare <= own_rule
