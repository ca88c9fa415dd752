"""The modules of the paper's two settings: their numbers, what the baselines change, and the toy versions from training to export."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess

import forks
import jax
import numpy as np
import pytest
from flags import flags

from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff, diff, load_experiment
from lgrpo.config.validate import validate
from lgrpo.models.spec import abstract_params
from lgrpo.runs.checkpoint import load_params, saved_config
from lgrpo.runs.convert import export_hf, import_hf
from lgrpo.runs.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
BASES = ("gsm8k_llama1b", "math_qwen7b")


def load(name: str) -> ExperimentConfig:
    return load_experiment(ROOT / "experiments" / f"{name}.py")


def numbers(cfg: ExperimentConfig) -> dict:
    latent, answer = cfg.rollout.latent, cfg.rollout.answer
    return {
        "prompts": (cfg.train.prompts_per_step, cfg.rollout.group_size, cfg.train.updates_per_step),
        "lengths": (cfg.data.max_prompt, cfg.rollout.max_new_tokens),
        "latent": (latent.k, latent.tau, latent.noise_scale, latent.law.clamp, latent.law.top_p, latent.law.one_sided, latent.law.density),
        "answer": (answer.sampler, answer.temperature, answer.top_p),
        "clip": (cfg.algo.clip_low, cfg.algo.clip_high, cfg.algo.dual_clip, cfg.algo.negative_weight),
        "adamw": (cfg.optim.lr, cfg.optim.schedule, cfg.optim.b1, cfg.optim.b2, cfg.optim.weight_decay, cfg.optim.clip_norm),
        "frozen": (cfg.optim.freeze_embed, cfg.optim.freeze_unembed),
        "kl": cfg.algo.kl_coef,
        "invalid": cfg.algo.invalid,
        "selection": (cfg.algo.first_token, cfg.algo.dynamic.enabled, cfg.algo.loss_mean),
    }


def test_the_numbers_are_the_papers():
    low = numbers(load("gsm8k_llama1b"))
    assert low == {
        "prompts": (64, 8, 4),
        "lengths": (192, 128),
        "latent": (10, 1.0, 1.0, (-1.5, 3.0), 0.95, True, "mean"),
        "answer": ("sample", 0.6, 1.0),
        "clip": (0.2, 0.2, 3.0, 1.0),
        "adamw": (1e-6, "constant", 0.9, 0.999, 0.01, 1.0),
        "frozen": (True, True),
        "kl": 0.0,
        "invalid": "zero",
        "selection": (True, True, "batch"),
    }
    high = {"prompts": (32, 8, 1), "lengths": (1024, 4096), "kl": 0.001, "invalid": "exclude"}
    assert numbers(load("math_qwen7b")) == low | high


@pytest.mark.parametrize("base", BASES)
def test_baselines_change_only_what_their_diff_says(base):
    cfg = load(base)
    for kind in ("explicit", "naive_latent"):
        module = importlib.import_module(f"experiments.{base}_{kind}")
        other = load(f"{base}_{kind}")
        assert other == apply_diff(cfg, module.DIFF) and set(diff(cfg, other)) <= set(module.DIFF)
        assert other.rollout.mode == ("explicit" if kind == "explicit" else "latent")
    naive = load(f"{base}_naive_latent")
    assert (naive.algo.invalid, naive.algo.first_token, naive.rollout.latent.law.one_sided) == ("keep", False, False)
    assert numbers(naive)["lengths"] == numbers(cfg)["lengths"]


@pytest.mark.parametrize("name", [b + s for b in BASES for s in ("", "_explicit", "_naive_latent")])
def test_the_large_ones_are_valid_on_eight_devices(name):
    assert validate(load(name), device_count=8, kind="train") == []
    assert validate(load(name), device_count=8, kind="eval") == []


@pytest.mark.parametrize("base", BASES)
def test_toy_versions_keep_the_method(base):
    small, large = numbers(load(f"{base}_smoke")), numbers(load(base))
    assert {k: v for k, v in small.items() if k not in ("prompts", "lengths")} == {
        k: v for k, v in large.items() if k not in ("prompts", "lengths")
    }
    assert load(f"{base}_smoke").model.family == load(base).model.family


@pytest.mark.parametrize("base", BASES)
def test_a_toy_run_is_trained_exported_and_imported(base, tmp_path):
    # One device, as on a user's CPU, and not in the repository: nothing may depend on where it is started.
    argv = ["train", str(ROOT / "experiments" / f"{base}_smoke.py"), "--workdir", "w", "--train.num-steps", "1", "--evaluation.every", "0"]
    argv += ["--algo.dynamic.max-rounds", "1", "--logging.progress", "False"]
    command, where = forks.command("-m", "lgrpo", *argv)
    env = os.environ | where | {"XLA_FLAGS": flags()}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "think_end '</think>': </|" in done.stderr and "first prompt: <|" in done.stderr
    cfg = saved_config(tmp_path / "w")
    (metrics,) = read_metrics(tmp_path / "w")
    assert metrics["rollout/latent_steps"] > 0 and np.isfinite(metrics["grad/norm"])
    export_hf(tmp_path / "w", tmp_path / "out")
    again = import_hf(str(tmp_path / "out"), tmp_path / "w2")
    assert again.data.template == "chat" and again.data.eos == cfg.data.eos and again.rollout.latent.k == 10
    ours, theirs = (load_params(tmp_path / w, abstract_params(again.model)) for w in ("w", "w2"))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), ours, theirs))
    assert json.loads((tmp_path / "out" / "latent_config.json").read_text())["think_end"] == "</think>"


@pytest.mark.parametrize("stage", ["encoder", "decoder", "union", "latent"])
def test_latent_sft_of_the_large_ones_is_valid_on_eight_devices(stage):
    for name, compression in (("gsm8k_llama1b_latent_sft", 2), ("math_qwen7b_latent_sft", 16)):
        cfg = load_experiment(ROOT / "experiments" / f"{name}.py", stage)
        assert validate(cfg, device_count=8, kind="sft") == []
        assert (cfg.sft.stage, cfg.sft.compression, cfg.sft.lora.rank, cfg.optim.freeze_embed) == (stage, compression, 64, True)
        # A chain of full length fits into the completions that RL samples from this start.
        assert cfg.sft.max_chain // compression + cfg.sft.max_answer <= load(name.removesuffix("_latent_sft")).rollout.max_new_tokens
    assert validate(load("gsm8k_llama1b_explicit_sft"), device_count=8, kind="sft") == []
