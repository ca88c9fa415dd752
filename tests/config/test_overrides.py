"""Configs in and out: files, diffs, JSON, command line. Every rejection must name the path and a way out."""

import dataclasses
import json
import re
import sys

import pytest

from lgrpo.config import ExperimentConfig, ModelConfig, RopeScaling
from lgrpo.config.overrides import ADDED, REMOVED, apply_diff, diff, field_paths, from_json, load_experiment, parse_overrides, to_json
from lgrpo.config.same import check_resume
from lgrpo.errors import UserError
from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gaussian import Gaussian
from lgrpo.latent.laws.gumbel import Gumbel

BASE = ExperimentConfig()
SCALED = ExperimentConfig(model=ModelConfig(rope_scaling=RopeScaling(factor=8.0)))


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["--algo.clip-low", "0.1"], "algo.clip_low", 0.1),
        (["--algo.clip_low", "0.1"], "algo.clip_low", 0.1),
        (["--algo.clip-low=1"], "algo.clip_low", 1.0),
        (["--train.share-prefix", "False"], "train.share_prefix", False),
        (["--rollout.latent.law.clamp", "None"], "rollout.latent.law.clamp", None),
        (["--rollout.latent.law.clamp", "-2.5", "3.0"], "rollout.latent.law.clamp", (-2.5, 3.0)),
        (["--rollout.latent.law", "exact"], "rollout.latent.law", Exact()),
        (["--rollout.latent.law=gaussian", "--rollout.latent.law.sigma", "0.5"], "rollout.latent.law", Gaussian(sigma=0.5)),
        (["--data.eos=--stop"], "data.eos", "--stop"),
        (["--evaluation.noise-scale", "-1"], None, None),
    ],
)
def test_one_option_changes_one_field(argv, path, value):
    new = parse_overrides(BASE, argv)
    changed = {p: v[1] for p, v in diff(BASE, new).items()}
    assert changed == ({} if path is None else {path: value})
    assert hash(new) == hash(apply_diff(BASE, {} if path is None else {path: value}))


def test_options_start_from_the_experiment_not_from_the_defaults():
    base = apply_diff(BASE, {"algo.clip_high": 0.28, "rollout.latent.k": 4})
    assert parse_overrides(base, ["--seed", "3"]) == dataclasses.replace(base, seed=3)


def test_options_of_an_optional_block():
    on = parse_overrides(BASE, ["--model.rope-scaling.factor", "16"])
    assert on.model.rope_scaling == RopeScaling(factor=16.0)
    assert parse_overrides(SCALED, ["--model.rope-scaling.factor", "16"]).model.rope_scaling == RopeScaling(factor=16.0)
    assert parse_overrides(SCALED, ["--model.rope-scaling", "None"]).model.rope_scaling is None


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--algo.clip_lw", "0.1"], "--algo.clip_lw: no such option; did you mean --algo.clip-low?"),
        (["--clip-low", "0.1"], "did you mean --algo.clip-low?"),
        (["--rollout.decode", "refill"], "rollout.decode: slot refill is not there"),
        (["--algo.k", "3"], "did you mean --rollout.latent.k?"),
        (["--seed", "1.5"], "--seed"),
        (["--algo.invalid", "drop"], "'keep', 'zero', 'exclude'"),
        (["--train.share-prefix", "maybe"], "--train.share-prefix"),
        (["--algo.clip-low"], "--algo.clip-low"),
        (["--rollout.latent.law.clamp", "1.0"], "--rollout.latent.law.clamp"),
        (["--optim.lr", "nan"], "optim.lr: nan is not a finite number"),
        (["stray"], "stray"),
    ],
)
def test_mistakes_on_the_command_line_are_one_clear_line(argv, says):
    with pytest.raises(UserError) as caught:
        parse_overrides(BASE, argv)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert not re.search("[│╭╰]", message)


def test_help_names_every_field_with_its_documentation(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_overrides(SCALED, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    missing = [p for p in field_paths() if p != "model.rope_scaling" and f"--{p.replace('_', '-')} " not in text]
    assert missing == []
    assert "Scale s of the law's noise" in text
    with pytest.raises(SystemExit):
        parse_overrides(BASE, ["--help"])
    assert "--model.rope-scaling.factor" in " ".join(capsys.readouterr().out.split())  # a block that is None is announced too


def test_apply_diff_reaches_into_blocks_that_are_none():
    assert apply_diff(BASE, {"model.rope_scaling.factor": 4}).model.rope_scaling == RopeScaling(factor=4.0)
    assert apply_diff(BASE, {"model.rope_scaling": dataclasses.asdict(RopeScaling())}).model.rope_scaling == RopeScaling()
    assert apply_diff(SCALED, {"model.rope_scaling": None}) == BASE


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rollout.latent.law.onesided": False}, "did you mean rollout.latent.law.one_sided?"),
        ({"algo.k": 3}, "did you mean rollout.latent.k?"),
        ({"seed.x": 1}, "seed.x: no such config field"),
        ({"rollout.latent.law.one_sided": 1}, "must be bool"),
        ({"rollout.latent.k": True}, "must be int"),
        ({"rollout.latent.k": 3.0}, "must be int"),
        ({"algo.clip_low": "0.1"}, "must be float"),
        ({"algo.invalid": "drop"}, "one of 'keep', 'zero', 'exclude'"),
        ({"rollout.latent.law.clamp": [-1.0, 1.0]}, "a tuple (float, float) or None"),
        ({"rollout.latent.law.clamp": (-1.0, 1.0, 2.0)}, "a tuple (float, float) or None"),
        ({"rollout.latent": {"k": 3}}, "missing"),
        ({"model": 3}, "must be ModelConfig"),
    ],
)
def test_apply_diff_refuses(changes, says):
    with pytest.raises(UserError) as caught:
        apply_diff(BASE, changes)
    assert says in str(caught.value)


@pytest.mark.parametrize("cfg", [BASE, SCALED, apply_diff(BASE, {"rollout.latent.law.clamp": None, "optim.lr": 3})])
def test_json_round_trip_keeps_equality_hash_and_types(cfg):
    back = from_json(json.loads(json.dumps(to_json(cfg), allow_nan=False)))
    assert back == cfg
    assert hash(back) == hash(cfg)
    assert type(back.rollout.latent.law.clamp) is type(cfg.rollout.latent.law.clamp)
    assert type(back.optim.lr) is float


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: d["algo"].pop("clip_low"), "algo.clip_low missing"),
        (lambda d: d["algo"].update(clip_lo=0.1), "did you mean algo.clip_low?"),
        (lambda d: d.update(seed=1.0), "seed: 1.0 is a float, but it must be int"),
        (lambda d: d["algo"].update(first_token="yes"), "algo.first_token"),
        (lambda d: d["rollout"]["latent"]["law"].update(clamp=[1, 2, 3]), "rollout.latent.law.clamp"),
        (lambda d: d["rollout"]["latent"]["law"].update(clamp=[1, "2"]), "rollout.latent.law.clamp[1]"),
        (lambda d: d["model"].update(rope_scaling={"factor": 2.0}), "model.rope_scaling.low_freq_factor"),
        (lambda d: d.update(model=None), "must be ModelConfig"),
    ],
)
def test_json_of_another_shape_is_refused(spoil, says):
    data = to_json(BASE)
    spoil(data)
    with pytest.raises(UserError) as caught:
        from_json(data)
    assert says in str(caught.value)


def test_configs_of_earlier_versions_say_what_those_did():
    """A field that came later is filled in as the old code behaved, which need not be today's default; only fields that are named for it."""
    data = to_json(BASE)
    assert data["model"].pop("attention") == "auto"
    assert from_json(data).model.attention == "plain"
    del data["algo"]["lora"]  # a whole block
    assert from_json(data).algo.lora.rank == 0
    assert set(ADDED) <= set(field_paths())


def test_a_setting_that_was_removed(tmp_path):
    """Runs that were saved with it are read; whoever asks for it is told what to do without."""
    data = to_json(BASE)
    data["rollout"] |= {"decode": "refill", "lanes": 2, "chunk": 32}
    assert from_json(data) == BASE
    with pytest.raises(UserError, match=r"^rollout.lanes: slot refill is not there.*leave the setting out$"):
        apply_diff(BASE, {"rollout.lanes": 2})
    file = tmp_path / "mine.py"
    file.write_text("from lgrpo.config import RolloutConfig\ndef get_config():\n    return RolloutConfig(decode='refill')\n")
    with pytest.raises(UserError, match=r"mine.py:3: TypeError.*rollout.decode: slot refill is not there"):
        load_experiment(file)
    assert not set(REMOVED) & set(field_paths())


FORMER = {"one_sided": True, "delta": 0.0, "clamp": [-1.5, 3.0], "top_p": 0.95, "order": "perturb_then_topk", "end_rule": "argmax"}


@pytest.mark.parametrize(
    ("density", "law"),
    [
        ("gumbel_mean", Gumbel(density="mean", score_gradient="aligned")),
        ("gumbel_weighted", Gumbel(density="weighted", score_gradient="aligned")),
        ("exact", Exact()),
    ],
)
def test_configs_from_before_laws_had_classes_are_read(density, law):
    data = json.loads(json.dumps(to_json(BASE)))
    kept = {name: data["rollout"]["latent"][name] for name in ("k", "tau", "noise_scale", "min_latent", "max_latent")}
    data["rollout"]["latent"] = kept | FORMER | {"density": density, "density_scale": "noise", "score_gradient": "aligned"}
    assert from_json(data) == apply_diff(BASE, {"rollout.latent.law": law})


LAW_FILE = """
import dataclasses
from lgrpo.config import *
from lgrpo.latent.law import Law

@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Law):
    width: float = 1.0

def get_config():
    return ExperimentConfig(rollout=RolloutConfig(latent=LatentConfig(law=Mine(width=2.0))))
"""


def test_a_law_of_a_user_goes_to_json_and_back_by_its_file(tmp_path):
    """Beside an experiment, by path on the command line, and read again by a process that never saw the experiment."""
    file = tmp_path / "own.py"
    file.write_text(LAW_FILE)
    cfg = load_experiment(file)
    data = json.loads(json.dumps(to_json(cfg)))
    assert data["rollout"]["latent"]["law"] == {"class": f"{file}:Mine", "width": 2.0}
    assert from_json(data) == cfg and hash(from_json(data)) == hash(cfg)
    given = parse_overrides(BASE, ["--rollout.latent.law", f"{file}:Mine", "--rollout.latent.law.width", "3"]).rollout.latent.law
    assert (type(given), given.width) == (type(cfg.rollout.latent.law), 3.0)
    assert "rollout.latent.law.width: 2.0 in the checkpoint, 3.0 now" in str(
        refused(cfg, apply_diff(cfg, {"rollout.latent.law.width": 3.0}))
    )
    assert "Mine(width=2.0) in the checkpoint, Exact() now" in str(refused(cfg, apply_diff(cfg, {"rollout.latent.law": Exact()})))


def test_a_law_beside_an_experiment_is_named_by_its_file(tmp_path):
    """So that it is found from another folder, as an ablation's runs start."""
    (tmp_path / "neighbour_law.py").write_text(LAW_FILE.split("def get_config")[0])
    (tmp_path / "x.py").write_text("from neighbour_law import *\ndef get_config():\n    return apply()\n".replace("apply()", APPLY))
    cfg = load_experiment(tmp_path / "x.py")
    data = to_json(cfg)
    assert data["rollout"]["latent"]["law"]["class"] == f"{tmp_path / 'neighbour_law.py'}:Mine"
    assert from_json(data) == from_json(data, trusted=True) == cfg


APPLY = "ExperimentConfig(rollout=RolloutConfig(latent=LatentConfig(law=Mine(width=2.0))))"


def refused(old, new):
    with pytest.raises(UserError) as caught:
        check_resume(old, new)
    return caught.value


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exakt", "No module named 'lgrpo.latent.laws.exakt'"),
        ("nowhere/x.py:Mine", "FileNotFoundError"),
        ("lgrpo.latent.laws.exact:Exakt", "has no attribute 'Exakt'"),
        ("lgrpo.types:Finish", "is no law; derive a frozen dataclass"),
        ("lgrpo.latent.law:Law", "the base of all laws"),
    ],
)
def test_what_is_no_law_is_one_clear_line(name, says):
    with pytest.raises(UserError) as caught:
        parse_overrides(BASE, ["--rollout.latent.law", name])
    assert says in str(caught.value) and "rollout.latent.law" in str(caught.value) and "\n" not in str(caught.value)


def test_settings_of_another_law_are_refused():
    with pytest.raises(UserError, match=r"rollout\.latent\.law\.sigma: no such setting of the law Gumbel"):
        apply_diff(BASE, {"rollout.latent.law.sigma": 1.0})
    with pytest.raises(UserError, match=r"--rollout\.latent\.law\.clamp: no such option"):
        parse_overrides(BASE, ["--rollout.latent.law", "exact", "--rollout.latent.law.clamp", "None"])


def test_diff_lists_exactly_the_changed_leaves():
    new = apply_diff(BASE, {"seed": 5, "rollout.latent.law.clamp": None, "model.rope_scaling.factor": 2})
    changes = diff(BASE, new)
    assert changes["seed"] == (0, 5)
    assert changes["rollout.latent.law.clamp"] == ((-1.5, 3.0), None)
    assert changes["model.rope_scaling"][0] is None
    assert changes["model.rope_scaling"][1]["factor"] == 2.0
    assert len(changes) == 3
    assert diff(SCALED, apply_diff(SCALED, {"model.rope_scaling.factor": 9})) == {"model.rope_scaling.factor": (8.0, 9.0)}


def test_resume_allows_budget_and_bookkeeping_but_not_another_experiment():
    harmless = {
        "train.num_steps": 7,
        "mesh.fsdp": 2,
        "evaluation.answer.top_p": 0.5,
        "checkpoint.keep": 9,
        "name": "x",
        "logging.progress": False,
    }
    check_resume(BASE, apply_diff(BASE, harmless))
    with pytest.raises(UserError) as caught:
        check_resume(BASE, apply_diff(BASE, harmless | {"algo.clip_low": 0.1, "train.microbatch": 2}))
    message = str(caught.value)
    assert "algo.clip_low: 0.2 in the checkpoint, 0.1 now" in message
    assert "train.microbatch" in message
    assert "num_steps" not in message


def test_resume_of_a_cosine_schedule_may_not_move_its_end():
    cosine = apply_diff(BASE, {"optim.schedule": "cosine"})
    with pytest.raises(UserError, match=r"train\.num_steps"):
        check_resume(cosine, apply_diff(cosine, {"train.num_steps": 7}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "no function get_config"),
        ("def get_config():\n    return {}\n", "returned a dict"),
        ("import nothing_like_this\n", "x.py:1: ModuleNotFoundError"),
        ("y = 1\ndef get_config(:\n", "SyntaxError"),
        ("def get_config():\n    return 1 / 0\n", "x.py:2: ZeroDivisionError"),
        ("from lgrpo.config import *\ndef get_config():\n    return ExperimentConfig(seed='3')\n", "seed: '3' is a str"),
        ("from lgrpo.config import *\ndef get_config():\n    return ExperimentConfig(mesh=None)\n", "mesh: None"),
    ],
)
def test_bad_experiment_files(tmp_path, text, says):
    file = tmp_path / "x.py"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_experiment(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_experiment_file(tmp_path):
    with pytest.raises(UserError, match="no such experiment file"):
        load_experiment(tmp_path / "none.py")


def test_an_ablation_imports_its_base_wherever_the_command_runs(tmp_path, monkeypatch):
    import sys

    folder = tmp_path / "experiments" / "ablations"
    folder.mkdir(parents=True)
    (tmp_path / "experiments" / "base.py").write_text(
        "from lgrpo.config import *\ndef get_config():\n    return ExperimentConfig(seed=4)\n"
    )
    (tmp_path / "experiments" / "__init__.py").touch()
    (folder / "a.py").write_text(
        "from experiments import base\nfrom lgrpo.config.overrides import apply_diff\nDIFF = {'algo.first_token': False}\n"
        "def get_config():\n    return apply_diff(base.get_config(), DIFF)\n"
    )
    for name in [n for n in sys.modules if n.partition(".")[0] == "experiments"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir("/")
    before = list(sys.path)
    cfg = load_experiment(folder / "a.py")
    assert (cfg.seed, cfg.algo.first_token) == (4, False)
    assert sys.path == before
    for name in [n for n in sys.modules if n.partition(".")[0] == "experiments"]:
        del sys.modules[name]  # so that later tests find the real package


def test_experiments_import_their_neighbours_and_not_those_of_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "neighbour.py").write_text(f"NAME = 'from_{name}'\n")
        (tmp_path / name / "mine.py").write_text(
            "import neighbour\nfrom lgrpo.config import ExperimentConfig\n\n\ndef get_config():\n    return ExperimentConfig(name=neighbour.NAME)\n"
        )
    before = list(sys.path)
    assert [load_experiment(tmp_path / name / "mine.py").name for name in ("a", "b", "a")] == ["from_a", "from_b", "from_a"]
    assert sys.path == before
