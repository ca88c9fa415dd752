"""`check` refuses what the commands refuse, before anything is computed, and shows what they would train on; `data` does so for a file alone."""

import json
import sys

import pytest

from lgrpo.__main__ import main
from lgrpo.config.objects import find_object
from lgrpo.data.survey import columns

EXPERIMENT = """{doc}
from lgrpo.config import *
from lgrpo.config.overrides import apply_diff
import neighbour

def get_config():
    return ExperimentConfig(
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        data=DataConfig(source="jsonl", path=neighbour.PATH, max_prompt=8, eval_split="train"),
        rollout=RolloutConfig(group_size=2, max_new_tokens=4, latent=LatentConfig(k=4)),
        sft=SftConfig(max_chain=8, max_answer=4, batch_size=2),
        train=TrainConfig(num_steps=1, prompts_per_step=2),
        evaluation=EvaluationConfig(batch=1),
        logging=LoggingConfig(tensorboard=False, progress=False),
    )
"""
RECORDS = [{"problem": f"Tom has {n} pens .", "cot": f"<<{n}+1={n + 1}>>", "answer": str(n + 1), "level": "easy"} for n in range(4)]
RECORDS += [{"problem": "Tom has 1 pens . Tom has 2 pens . Tom has 3 pens .", "cot": "<<1+1=2>>", "answer": "2"}]
RECORDS += [{"problem": "Tom has 1 pens .", "cot": "<<1+1=2>><<1+1=2>>", "answer": "2"}]


def write(folder, records=RECORDS):
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    """(folder, run(*argv) -> (exit code, stdout, stderr))."""
    write(tmp_path)
    (tmp_path / "neighbour.py").write_text(f"PATH = {str(tmp_path)!r}\n")
    (tmp_path / "x.py").write_text(EXPERIMENT.format(doc=""))

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["lgrpo", *argv])
        with pytest.raises(SystemExit) as stopped:
            main()
        out = capsys.readouterr()
        return stopped.value.code or 0, out.out, out.err

    return tmp_path, lambda *argv: run("check", str(tmp_path / "x.py"), "--devices", "1", *argv), run


def test_the_first_prompt_has_its_target_and_limits_count(place):
    _, check, _ = place
    code, out, err = check("--kind", "sft")
    assert code == 0, err
    cfg = json.loads(out)
    assert cfg["data"]["think_end_id"] >= 0 and cfg["model"]["vocab_size"] > 0
    assert "first prompt: Tom has 0 pens . <think>" in err and "its gold answer: '1'" in err
    target = err[err.index("its target: ") :].split("\n")[0]
    assert target.replace(" ", "") == "itstarget:<<0+1=1>></think>####1<eos>"
    assert "1 longer than data.max_prompt=8" in err and "1 longer than sft.max_chain=8" in err and "4 used, 2 left out" in err
    code, _, err = check("--kind", "train")
    assert code == 0 and "5 used, 1 left out" in err and "its target" not in err


@pytest.mark.parametrize("kind", ["train", "sft", "eval"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--data.tokenizer", "nowhere"), "data.tokenizer: nowhere does not exist"),
        (("--data.eos", "<end>"), "no token '<end>'"),
        (("--train.init-from", "nowhere"), "nowhere: no checkpoints"),
        (("--data.path", "nowhere"), "does not exist"),
        (("--model.vocab-size", "5"), "model.vocab_size"),
        (("--data.max-prompt", "2"), "none of the 6"),
    ],
)
def test_what_a_command_refuses_is_refused(place, kind, options, says):
    _, check, _ = place
    code, _, err = check("--kind", kind, *options)
    assert code == 2 and says in err, err
    if says == "does not exist" or "none of" in says:
        assert check("--kind", kind, "--fast", *options)[0] == 0


def test_columns_and_batches_are_checked(place):
    folder, check, _ = place
    write(folder, [{name: value for name, value in r.items() if name != "cot"} for r in RECORDS])
    code, _, err = check("--kind", "sft")
    assert code == 2 and "have no `cot`" in err
    assert check("--kind", "train")[0] == 0
    code, _, err = check("--kind", "train", "--train.prompts-per-step", "50")
    assert code == 2 and "a batch of 50" in err


def test_weights_and_workdirs_are_checked(place):
    folder, check, run = place
    work = folder / "w"
    write(folder, RECORDS * 3)  # a batch for each of the eight devices
    code, _, err = run("sft", str(folder / "x.py"), "--workdir", str(work), "--sft.batch-size", "8")
    assert code == 0, err
    assert "weights: step 1 of" in check("--kind", "eval", "--workdir", str(work))[2]
    assert "weights: step 1 of train.init_from" in check("--train.init-from", str(work))[2]
    code, _, err = check("--train.init-from", str(work), "--model.d-ff", "64")
    assert code == 2 and "model.d_ff: 32 there, 64 here" in err
    code, _, err = check("--kind", "sft", "--workdir", str(work), "--sft.batch-size", "8", "--optim.lr", "0.5")
    assert code == 2 and "optim.lr" in err
    code, _, err = check("--kind", "eval", "--workdir", str(folder / "typo"))
    assert code == 2 and "no checkpoints there" in err


@pytest.mark.parametrize(
    ("doc", "kind"),
    [
        ('"""Start: python -m lgrpo train experiments/y.py ...\nRun: python -m lgrpo sft folder/x.py --workdir w"""', "sft"),
        ('"""Run: lgrpo eval x.py"""', "eval"),
        ('"""No command."""', "train"),
    ],
)
def test_the_kind_comes_from_the_module(place, doc, kind):
    folder, check, _ = place
    (folder / "x.py").write_text(EXPERIMENT.format(doc=doc))
    code, _, err = check("--fast")
    assert code == 0 and f"ok for `{kind}`" in err


def test_a_file_of_ones_own(place, capsys):
    folder, _, run = place
    code, out, err = run("data", str(folder / "train.jsonl"), "--data.max-prompt", "8", "--sft.max-chain", "8", "--sft.max-answer", "4")
    assert code == 0, err
    assert "6 records" in out and "level (4)" in out and "not read: level" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.split()[:1] in (["prompt"], ["chain"], ["answer"])}
    assert [lines[what][-2] for what in ("prompt", "chain", "answer")] == ["1", "1", "0"]
    assert "left out: 1 by train and eval" in out and "2 by sft" in out and out.count("-- record") == 5
    assert "target: <<0+1=1>></think>#### 1<eos>" in out
    assert columns(folder / "train.jsonl")["problem"] == 6
    write(folder, [{"problem": "Tom has 1 pens .", "answer": 2}])
    assert "1 records have no `cot`: sft refuses" in run("data", str(folder / "train.jsonl"))[1]
    assert run("data", str(folder / "none.jsonl"))[0] == run("data", str(folder / "x.py"))[0] == 2


def test_every_file_that_is_named_may_import_its_neighbours(tmp_path):
    """A law's file too, and a file of another folder whose neighbour has the same name."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "beside.py").write_text(f"VALUE = {name!r}\n")
        (tmp_path / name / "named.py").write_text("import beside\n\nclass Thing:\n    value = beside.VALUE\n")
    assert [find_object(f"{tmp_path / n / 'named.py'}:Thing", "x").value for n in ("a", "b")] == ["a", "b"]
