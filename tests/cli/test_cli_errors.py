"""python -m lgrpo from the outside: exit codes, one line on stderr, no traceback; and that commands reach their loops."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lgrpo import __main__ as cli
from lgrpo.cli import train as train_command
from lgrpo.errors import UserError

ROOT = Path(__file__).parents[2]
EXPERIMENT = """from lgrpo.config import *
def get_config():
    return ExperimentConfig(name="small", rollout=RolloutConfig(group_size=4))
"""


@pytest.fixture
def experiment(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(EXPERIMENT)
    return str(file)


def main(monkeypatch, capsys, *argv):
    """(exit code, stdout, stderr) of a command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["lgrpo", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr()
    return stop.value.code or 0, out.out, out.err


_ANSWERS = """
import sys, time
from lgrpo.__main__ import run
from lgrpo.errors import UserError
try:
    run(sys.argv[1:])
except (UserError, SystemExit):
    pass
print(*sorted({"jax", "numpy", "scipy", "tyro"} & set(sys.modules)), time.process_time())
"""


@pytest.mark.parametrize(
    ("argv", "loads"),
    [
        (["--help"], []),
        (["train", "X", "--algo.clip-lw", "0.1"], []),
        (["ablate", "X", "--grdi", "y"], []),
        (["train", "X", "--algo.clip-low", "big"], ["tyro"]),
        (["train", "X", "--help"], ["tyro"]),
    ],
)
def test_help_and_mistakes_answer_before_anything_slow_is_loaded(experiment, argv, loads):
    argv = [sys.executable, "-c", _ANSWERS, *[experiment if a == "X" else a for a in argv]]
    *loaded, seconds = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split("\n")[-2].split()
    assert loaded == loads
    if not loads:  # of CPU, four times what it takes; tyro alone, which reads the settings, takes as long as this on a slow processor
        assert float(seconds) < 0.5


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (
            ["trian", "X"],
            "trian: no such command; use one of train, sft, eval, trace, check, overlap, ablate, "
            "report, compare, selftest, import-hf, export-hf, init, data, ask",
        ),
        (["train"], "no experiment given"),
        (["train", "--algo.clip-low", "0.1"], "no experiment given"),
        (["train", "nothing.py", "--workdir", "w"], "nothing.py: no such experiment file"),
        (["train", "X"], "--workdir is missing"),
        (["train", "X", "--workdir"], "--workdir: expected one argument"),
        (["train", "X", "--workdir", "w", "--algo.clip-lw", "0.1"], "did you mean --algo.clip-low?"),
        (["train", "X", "--workdir", "w", "--algo.clip-low", "big"], "--algo.clip-low"),
        (["eval", "X", "--workdir", "w", "stray"], "stray"),
        (["check", "X", "--devices", "many"], "--devices"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(monkeypatch, capsys, experiment, argv, says):
    code, out, err = main(monkeypatch, capsys, *[experiment if a == "X" else a for a in argv])
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert out == ""


@pytest.mark.parametrize("command", ["train", "sft", "eval"])
def test_commands_reach_their_loop_with_the_resolved_config(monkeypatch, experiment, tmp_path, command):
    calls = []
    package, module = {"train": ("train", "rl"), "sft": ("train", "sft"), "eval": ("evaluation", "evaluate")}[command]
    fake = types.SimpleNamespace(run=lambda cfg, workdir, **_: calls.append((cfg, workdir)) or 75)
    parent = pytest.importorskip(f"lgrpo.{package}")
    monkeypatch.setitem(sys.modules, f"lgrpo.{package}.{module}", fake)
    monkeypatch.setattr(parent, module, fake, raising=False)
    argv = [command, experiment, "--rollout.latent.law.clamp", "-2.0", "2.0", "--workdir", str(tmp_path / "w"), "--algo.clip-low=0.1"]
    assert cli.run(argv) == 75
    ((cfg, workdir),) = calls
    assert (cfg.name, cfg.rollout.group_size, cfg.rollout.latent.law.clamp, cfg.algo.clip_low) == ("small", 4, (-2.0, 2.0), 0.1)
    assert workdir == tmp_path / "w"
    assert not workdir.exists()  # the loop makes it, once it knows that the config is valid


def test_check_prints_the_resolved_config_and_every_problem(monkeypatch, capsys, experiment):
    code, out, err = main(monkeypatch, capsys, "check", experiment, "--fast", "--devices", "8", "--seed", "5")
    assert code == 0
    assert json.loads(out)["seed"] == 5
    assert "ok for `train` on 8 device(s)" in err
    code, out, err = main(monkeypatch, capsys, "check", experiment, "--devices", "8", "--optim.lr", "0", "--train.prompts-per-step", "12")
    assert code == 2
    assert json.loads(out)["optim"]["lr"] == 0
    assert "optim.lr=0.0" in err
    assert "use 8 or 16" in err
    assert (
        main(monkeypatch, capsys, "check", experiment, "--fast", "--kind", "eval", "--devices", "8", "--train.prompts-per-step", "12")[0]
        == 0
    )


def test_help(monkeypatch, capsys, experiment):
    code, out, _ = main(monkeypatch, capsys, "--help")
    assert code == 0
    assert all(command in out for command in ("train", "sft", "eval", "check"))
    code, out, _ = main(monkeypatch, capsys, "train", "--help")
    assert code == 0
    assert "--workdir" in out
    code, out, _ = main(monkeypatch, capsys, "train", experiment, "--help")
    assert code == 0
    assert "--workdir" in out
    assert "--rollout.group-size INT" in out
    assert "(default: 4)" in out  # of this experiment, not of the dataclass
    assert main(monkeypatch, capsys)[0] == 2


def test_errors_of_our_own_keep_their_traceback(monkeypatch, capsys, experiment):
    monkeypatch.setattr(train_command, "run", lambda *_: (_ for _ in ()).throw(KeyError("bug")))
    code, _, err = main(monkeypatch, capsys, "train", experiment, "--workdir", "w")
    assert code == 1 and err.startswith("Traceback") and err.endswith("KeyError: 'bug'\n")


def test_user_errors_from_inside_a_loop_are_one_line(monkeypatch, capsys, experiment):
    monkeypatch.setattr(train_command, "run", lambda *_: (_ for _ in ()).throw(UserError("data: gone; put it back")))
    code, _, err = main(monkeypatch, capsys, "train", experiment, "--workdir", "w")
    assert (code, err) == (2, "error: data: gone; put it back\n")


def test_as_a_process(tmp_path, experiment):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lgrpo", "train", experiment, "--workdir", "w", "--algo.clip-lw", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --algo.clip-lw: no such option; did you mean --algo.clip-low?\n"


@pytest.mark.parametrize("environment", [False, True])
def test_compiled_programs_are_kept_where_the_config_says(tmp_path, environment):
    """Unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    program = (
        "import sys, jax; from lgrpo.cli.common import cache_compilations; cache_compilations(sys.argv[1]);"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); jax.jit(lambda x: x * 3)(1.0)"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    if environment:
        env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "other")
    subprocess.run([sys.executable, "-c", program, "~/kept"], env=env, cwd=ROOT, check=True)
    assert any((tmp_path / "kept").glob("*")) != environment
    assert any((tmp_path / "other").glob("*")) == environment
