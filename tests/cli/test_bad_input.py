"""Bad input through the real command line and the real loops: one clear line, exit code 2, and what was in the workdir is still there."""

import hashlib
import json
import sys

import pytest

from lgrpo.__main__ import main
from lgrpo.data.prompts import ASSET

EXPERIMENT = """
from lgrpo.config import *

def get_config():
    return ExperimentConfig(
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        data=DataConfig(source="jsonl", path={path!r}, max_prompt=16),
        rollout=RolloutConfig(group_size=2, max_new_tokens=4, latent=LatentConfig(k=4)),
        sft=SftConfig(max_chain=8, max_answer=4, batch_size=8),
        train=TrainConfig(num_steps=1, prompts_per_step=8),
        logging=LoggingConfig(tensorboard=False, progress=False),
    )
"""
GOOD = [{"problem": f"Tom has {n} pens .", "cot": f"<<{n}+1={n + 1}>>", "answer": str(n + 1)} for n in range(8)]


def write(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def snapshot(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def setup(tmp_path, monkeypatch, capsys):
    """(data folder, workdir, run(command, *options) -> last line on stderr of a run that must fail)."""
    data, workdir = tmp_path / "data", tmp_path / "work"
    write(data, GOOD)
    experiment = tmp_path / "experiment.py"
    experiment.write_text(EXPERIMENT.format(path=str(data)))

    def run(command, *options):
        monkeypatch.setattr(sys, "argv", ["lgrpo", command, str(experiment), "--workdir", str(workdir), *options])
        with pytest.raises(SystemExit) as stopped:
            main()
        err = capsys.readouterr().err
        assert stopped.value.code == 2, err
        errors = [line for line in err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, err
        assert "Traceback" not in err
        return err[err.index("error:") :]

    return data, workdir, run


@pytest.fixture
def trained(setup, monkeypatch):
    """As setup, with one finished supervised run in the workdir."""
    data, workdir, run = setup
    monkeypatch.setattr(sys, "argv", ["lgrpo", "sft", str(data.parent / "experiment.py"), "--workdir", str(workdir)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    return data, workdir, run


def test_record_without_answer(setup):
    data, workdir, run = setup
    write(data, [*GOOD[:3], {"problem": "Tom has 1 pens ."}, *GOOD[3:]])
    message = run("train")
    assert "train.jsonl:4" in message
    assert "answer" in message
    assert not (workdir / "checkpoints" / "1").exists()


def test_broken_line(setup):
    data, _, run = setup
    (data / "train.jsonl").write_text('{"problem": "Tom has 1 pens .", "answer": "1"}\n{"problem": "Tom ha')
    assert "train.jsonl:2" in run("train")


def test_prompt_longer_than_the_limit(setup):
    _, _, run = setup
    message = run("train", "--data.max-prompt", "4", "--data.overlong", "error")
    assert "max_prompt" in message
    assert "none of the 8" in run("train", "--data.max-prompt", "4")


@pytest.mark.parametrize("value", ["9999", "7"])
def test_think_end_id_that_is_not_the_tokenizers(setup, value):
    _, _, run = setup
    message = run("train", "--data.think-end-id", value)
    assert "think_end_id" in message
    assert value in message


def test_unknown_option_names_the_nearest(setup):
    _, _, run = setup
    assert "--algo.clip-low" in run("train", "--algo.clip-lo", "0.1")


def test_every_problem_of_a_config_at_once(setup):
    _, workdir, run = setup
    message = run("train", "--rollout.latent.k", "500", "--rollout.group-size", "1", "--train.updates-per-step", "3")
    assert all(field in message for field in ("rollout.latent.k", "rollout.group_size", "train.updates_per_step"))
    assert not workdir.exists()


def test_workdir_of_another_model(trained):
    _, workdir, run = trained
    before = snapshot(workdir)
    message = run("sft", "--model.d-ff", "64", "--train.num-steps", "3")
    assert "model.d_ff" in message
    assert snapshot(workdir) == before


def test_initial_parameters_of_another_model(trained):
    data, workdir, run = trained
    before = snapshot(workdir)
    other = str(data.parent / "other")
    message = run("sft", "--workdir", other, "--train.init-from", str(workdir), "--model.d-ff", "64")
    assert "model.d_ff: 32 there, 64 here" in message
    assert snapshot(workdir) == before


def test_weights_of_another_vocabulary(setup, monkeypatch):
    """The same file name and size, two words swapped: every shape fits and the run would train on noise."""
    data, workdir, run = setup
    file = data.parent / "tokenizer.json"
    file.write_bytes(ASSET.read_bytes())
    argv = ["lgrpo", "sft", str(data.parent / "experiment.py"), "--workdir", str(workdir), "--data.tokenizer", str(file)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    before = snapshot(workdir)
    inner = json.loads(file.read_text())
    words = inner["model"]["vocab"]
    words["Tom"], words["pens"] = words["pens"], words["Tom"]
    file.write_text(json.dumps(inner))
    more = ("--data.tokenizer", str(file))
    for command, options in {
        "sft": ("--train.num-steps", "3"),
        "train": ("--workdir", str(data.parent / "other"), "--train.init-from", str(workdir)),
        "eval": ("--data.eval-split", "train"),
        "trace": ("--data.eval-split", "train"),
    }.items():
        message = run(command, *more, *options)
        assert "another vocabulary" in message and str(workdir) in message and "data.tokenizer" in message, command
    assert snapshot(workdir) == before


def test_eval_without_a_checkpoint(setup):
    _, _, run = setup
    assert "no checkpoint" in run("eval", "--data.eval-split", "train")
