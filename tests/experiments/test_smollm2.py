"""The study of a real model: its settings, and how its costs add up. The chain itself is `make smollm2 BUDGET=smoke`."""

import importlib.util
import json
import pathlib

import pytest

from experiments.smollm2 import __main__ as study
from experiments.smollm2 import choose
from experiments.smollm2.stages import BUDGETS, STAGES, compared_as, sampler, stage_config, start_as
from experiments.smollm2.weights import TOKENS, fetch
from lgrpo.config.validate import validate
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.runs.convert import import_hf

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "hf_llama"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study whose weights are a tiny model's, with tokens of their own added."""
    spec = importlib.util.spec_from_file_location("models_conftest", pathlib.Path(__file__).parents[1] / "models" / "conftest.py")
    helpers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helpers)
    root = tmp_path_factory.mktemp("smollm2") / "cpu"
    root.mkdir()
    source = root / "hf"
    source.mkdir()
    for file in GOLDEN.iterdir():
        if file.suffix in (".json", ".safetensors"):
            (source / file.name).write_bytes(file.read_bytes())
    helpers.write_tokenizer(source)
    import_hf(str(source), root / "weights", dtype="float32", add=TOKENS)
    return root


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_valid(folder, budget, name):
    cfg = stage_config(name, folder, BUDGETS[budget], 0)
    ready = resolve(cfg, load_tokenizer(cfg.data))
    assert validate(ready, device_count=1, kind=STAGES[name][0]) == []
    assert cfg.name == name and cfg.data.think_end == TOKENS[1]


def sampled_by(cfg):
    """How a config samples, but for how long and what belongs to the density alone."""
    rollout = cfg.rollout
    law = {k: v for k, v in vars(rollout.latent.law).items() if k not in ("density", "density_scale", "score_gradient")}
    return rollout.mode, rollout.latent.k, rollout.latent.tau, type(rollout.latent.law), str(law), rollout.answer


@pytest.mark.parametrize("name", [name for name, (kind, *_) in STAGES.items() if kind == "train"])
def test_a_stage_is_compared_with_its_start_under_its_own_sampler(folder, name):
    stage, start = (stage_config(of, folder, BUDGETS["cpu"], 0) for of in (name, STAGES[name][1]))
    as_stage = start_as(name, folder, BUDGETS["cpu"], 0)
    assert as_stage.rollout == stage.rollout and as_stage.evaluation == stage.evaluation and as_stage.model == stage.model
    if not compared_as(name):
        assert sampled_by(stage) == sampled_by(start)
    if sampler(name, "noise_free") == sampler(STAGES[name][1], "noise_free"):
        assert sampled_by(stage)[:3] == sampled_by(start)[:3]
    assert {name for name in STAGES if compared_as(name)} == {"exact_k2", "gumbel_weighted", "paper", "paper_lr", "naive_latent"}


def test_a_start_is_evaluated_as_a_stage_samples_once(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(study.evaluate, "run", lambda cfg, place, out: asked.append((cfg.rollout.latent.k, place, out)) or 0)
    start = folder / "seed3" / "latent_sft"
    assert study.start_evaluated("exact", folder, BUDGETS["cpu"], 3) and not asked  # it samples as its start does
    assert study.start_evaluated("exact_k2", folder, BUDGETS["cpu"], 3)
    assert asked == [(2, start, "as_exact_k2")]
    (start / "as_exact_k2").mkdir(parents=True)
    (start / "as_exact_k2" / "eval.json").write_text("{}")
    assert study.start_evaluated("exact_k2", folder, BUDGETS["cpu"], 3) and len(asked) == 1
    monkeypatch.setattr(study.evaluate, "run", lambda *_, **__: study.EXIT_PREEMPTED)
    assert not study.start_evaluated("paper", folder, BUDGETS["cpu"], 3)


@pytest.mark.parametrize("compression", [1, 2, 3, 4])
def test_a_candidate_for_latent_sft_has_room_for_the_longest_chain_and_is_measured_on_valid(folder, compression):
    cfg = choose.candidate(folder, compression, 4, 70)
    ready = resolve(cfg, load_tokenizer(cfg.data))
    assert validate(ready, device_count=1, kind="sft") == []
    assert cfg.train.num_steps == 70 and cfg.sft.compression == compression and cfg.data.eval_split == "valid"
    assert (cfg.rollout.max_new_tokens - 16) * compression >= 24


def test_candidates_differ_in_what_is_asked_for_and_start_from_the_model_of_their_seed(folder):
    cfgs = [choose.candidate(folder, 1, k, 70, seed) for k, seed in ((4, 0), (8, 0), (8, 3))]
    assert [cfg.name for cfg in cfgs] == ["compression1_updates70", "compression1_updates70_k8", "compression1_updates70_k8_seed3"]
    assert [cfg.rollout.latent.k for cfg in cfgs] == [4, 8, 8] and [cfg.seed for cfg in cfgs] == [0, 0, 3]
    assert [pathlib.Path(cfg.train.init_from).parent.name for cfg in cfgs] == ["seed0", "seed0", "seed3"]
    assert all(validate(resolve(cfg, load_tokenizer(cfg.data)), device_count=1, kind="sft") == [] for cfg in cfgs)


def test_candidates_need_the_model_that_they_start_from(folder, capsys, monkeypatch):
    for place in (folder, folder.parent):
        monkeypatch.setattr("sys.argv", ["choose", "--workdir", str(place), "--seed", "5"])
        assert choose.main() == 2
        assert f"--workdir {place}: no finished explicit_sft of a budget there with seed 5" in capsys.readouterr().err


def test_a_stage_comes_with_its_starts_and_costs_what_they_cost():
    assert study.with_starts(["exact"]) == ["explicit_sft", "latent_sft", "exact"]
    own = {"explicit_sft": 1.0, "latent_sft": 2.0, "exact": 4.0, "explicit_grpo": 8.0}
    results = {name: {"own": dict.fromkeys(study.COSTS, cost)} for name, cost in own.items()}
    assert study.costs("exact", results)["perf/flop_total"] == 7.0
    assert study.costs("explicit_grpo", results)["perf/seconds_total"] == 9.0


@pytest.mark.parametrize(("options", "dtype"), [([], "float32"), (["--dtype", "bfloat16"], "bfloat16")])
def test_the_type_of_the_computation_is_that_of_every_stage(folder, monkeypatch, options, dtype):
    seen = []
    monkeypatch.setattr(study, "fetch", lambda _: None)
    monkeypatch.setattr(study.gym, "write", lambda _: {"splits": {}})
    monkeypatch.setattr(
        study, "run_seed", lambda folder, budget, seed, names, _: seen.extend(stage_config(n, folder, budget, seed) for n in names)
    )
    monkeypatch.setattr("sys.argv", ["smollm2", "--budget", "cpu", "--workdir", str(folder.parent), "--seeds", "3", *options])
    assert study.main() == study.EXIT_PREEMPTED
    assert [cfg.name for cfg in seen] == list(STAGES) and {cfg.model.dtype for cfg in seen} == {dtype}


def test_weights_that_are_there_are_not_fetched_again(folder):
    before = json.loads((folder / "weights" / "config.json").read_text())
    fetch(folder / "weights")
    assert json.loads((folder / "weights" / "config.json").read_text()) == before
