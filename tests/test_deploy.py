"""The files under deploy/: what must hold of each, and that our own parser takes the command that it runs. None of them has met its cloud."""

import ast
import importlib.metadata
import math
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from lgrpo.__main__ import run
from lgrpo.cli import train
from lgrpo.config.validate import require_valid
from lgrpo.runs import storage

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(p for p in DEPLOY.iterdir() if p.suffix in (".sh", ".sbatch"))
JOBSETS = sorted((DEPLOY / "gke").glob("*.yaml"))
CHIPS_PER_HOST = {"tpu-v5-lite-podslice": 4, "tpu-v6e-slice": 4}  # of slices with several hosts: ct5lp-hightpu-4t, ct6e-standard-4t
SLURM = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "time", "signal", "requeue", "open-mode"}  # of sbatch(1)


@pytest.fixture
def accepted(monkeypatch):
    """A function that parses arguments of lgrpo, as a run on so many devices would, and gives the options."""
    seen = []
    monkeypatch.setattr(train, "run", lambda options, cfg, remake: seen.append((options, cfg)) or 0)
    monkeypatch.setattr(storage, "_open_bucket", lambda name: None)  # there is none
    monkeypatch.chdir(ROOT)

    def check(arguments, devices):
        assert run(arguments) == 0
        options, cfg = seen.pop()
        require_valid(cfg, device_count=devices, kind="train")
        return options

    return check


def of_lgrpo(text):
    """The arguments after `-m lgrpo` in a command line."""
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    at = words.index("lgrpo", words.index("-m"))
    return words[at + 1 :]


@pytest.mark.parametrize("path", JOBSETS, ids=lambda p: p.stem)
def test_a_jobset_fills_its_slices(path, accepted):
    spec = yaml.safe_load(path.read_text())
    assert (spec["apiVersion"], spec["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert spec["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"] == "cloud.google.com/gke-nodepool"
    (job,) = spec["spec"]["replicatedJobs"]
    slices, work = job["replicas"], job["template"]["spec"]
    pod = work["template"]["spec"]
    (container,) = pod["containers"]
    where = {k.rpartition("/")[2]: v for k, v in pod["nodeSelector"].items()}
    chips = math.prod(map(int, where["gke-tpu-topology"].split("x")))
    per_host = CHIPS_PER_HOST[where["gke-tpu-accelerator"]]
    assert work["parallelism"] == work["completions"] == chips // per_host
    assert work["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never" and work["backoffLimit"] == 0
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": per_host}
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert re.fullmatch(r".+:[\w.-]+", container["image"]) and not container["image"].endswith(":latest")
    assert spec["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert work["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert str(accepted(container["args"], slices * chips).workdir).startswith("gs:/")
    env = {e["name"]: e for e in container.get("env", [])}
    assert (slices > 1) == ("MEGASCALE_NUM_SLICES" in env)
    if slices > 1:
        name = spec["metadata"]["name"]
        assert env["MEGASCALE_NUM_SLICES"]["value"] == str(slices)
        assert env["MEGASCALE_COORDINATOR_ADDRESS"]["value"] == f"{name}-{job['name']}-0-0.{name}"
        assert "jobset.sigs.k8s.io/job-index" in env["MEGASCALE_SLICE_ID"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_there_is_one_for_each_kind():
    kinds = [(s["spec"]["replicatedJobs"][0]["replicas"], path.stem[:3]) for path in JOBSETS if (s := yaml.safe_load(path.read_text()))]
    assert sorted(kinds) == [(1, "v5e"), (1, "v6e"), (2, "v5e")]


def test_the_image():
    lines = [line.split(maxsplit=1) for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    steps = [(word, rest) for word, rest in lines if word.isupper()]
    ((_, base),) = [s for s in steps if s[0] == "FROM"]
    version = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-\w+", base)
    assert version and (int(version[1]), int(version[2])) >= (3, 11)
    user = [rest for word, rest in steps if word == "USER"]
    assert user and user[-1] not in ("root", "0") and steps.index(("USER", user[-1])) > max(n for n, s in enumerate(steps) if s[0] == "RUN")
    for word, rest in steps:
        for source in rest.split()[:-1] if word == "COPY" else []:
            assert (ROOT / source).exists(), source
    (entry,) = [rest for word, rest in steps if word == "ENTRYPOINT"]
    assert ast.literal_eval(entry) == ["python", "-m", "lgrpo"]


def test_every_requirement_is_pinned_within_its_range():
    pins = dict(line.split("==") for line in (DEPLOY / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    wanted = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    jax_tpu = [r for r in importlib.metadata.requires("jax") if r.startswith("libtpu") and 'extra == "tpu"' in r]
    for requirement in map(Requirement, filter(None, [*wanted, *jax_tpu, "gcsfs"])):
        pin = pins[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(pin), (requirement, pin)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shells_read_the_scripts(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ":latest" not in path.read_text()


def stubbed(tmp_path, script, *arguments, **env):
    """What a script calls: a list of argument lists, by programs that do nothing but take note. Each call of ssh ends with the next of `codes`."""
    log = tmp_path / "calls"
    log.mkdir(exist_ok=True)
    for name in ("xpk", "gcloud", "ssh", "srun", "scontrol"):
        stub = tmp_path / name
        # A file a call, named in their order: hosts are called at once.
        stub.write_text(f'#!/bin/bash\nprintf "%s\\0" {name} "$@" > {log}/${{EPOCHREALTIME/[.,]/}}-$$\nexit ${{{name.upper()}_CODE:-0}}\n')
        stub.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | env
    done = subprocess.run(["bash", DEPLOY / script, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20)
    calls = [call.read_text().split("\0")[:-1] for call in sorted(log.iterdir())]
    return done, calls


def test_xpk(tmp_path, accepted):
    done, ((*_, command),) = stubbed(tmp_path, "xpk.sh")
    assert done.returncode == 0 and command.startswith("--command=")
    assert str(accepted(of_lgrpo(command.removeprefix("--command=")), 16).workdir).startswith("gs:/")


def test_a_managed_instance_group(tmp_path, accepted):
    done, (policy, template, group) = stubbed(tmp_path, "mig.sh")
    assert done.returncode == 0
    topology = next(w for w in policy if w.startswith("--accelerator-topology=")).partition("=")[2]
    chips = math.prod(map(int, topology.split("x")))
    machine = next(w for w in template if w.startswith("--machine-type="))
    hosts = next(w for w in group if w.startswith("--size=")).partition("=")[2]
    assert int(hosts) * int(re.search(r"-(\d+)t$", machine)[1]) == chips
    metadata = next(w for w in template if w.startswith("--metadata=")).partition("=")[2]
    image, arguments = (item.partition("=")[2] for item in metadata.split(",", 1))
    assert ":" in image and str(accepted(arguments.split(), chips).workdir).startswith("gs:/")
    startup = next(w for w in template if w.startswith("--metadata-from-file=")).rpartition("=")[2]
    assert (ROOT / startup).exists()


@pytest.mark.parametrize("code", [0, 75, 2])
def test_slurm(tmp_path, accepted, code):
    text = (DEPLOY / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.M))
    assert len(options) == text.count("#SBATCH") and options.keys() <= SLURM
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    done, calls = stubbed(tmp_path, "slurm.sbatch", SRUN_CODE=str(code), SLURM_JOB_ID="7")
    assert done.returncode == code
    accepted(of_lgrpo(shlex.join(calls[0])), int(options["nodes"]) * int(options["gpus-per-node"]))
    assert (["scontrol", "requeue", "7"] in calls) == (code == 75)


def test_ssh(tmp_path, accepted):
    done, calls = stubbed(tmp_path, "ssh.sh", "a", "b")
    assert done.returncode == 0 and sorted(call[1] for call in calls) == ["a", "b"]
    for _, host, command in calls:
        accepted(of_lgrpo(command), 16)
        env = dict(re.findall(r"(JAX_\w+)=(\S+)", command))
        assert env == {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str("ab".index(host)), "JAX_COORDINATOR_ADDRESS": "a:8476"}
    assert stubbed(tmp_path, "ssh.sh", "a", SSH_CODE="2")[0].returncode == 2, "a mistake is not tried again, and is told"


def test_skypilot(accepted):
    spec = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    assert spec["resources"]["accelerators"].startswith("tpu-") and spec["resources"]["use_spot"]
    assert "--constraint deploy/constraints.txt" in spec["setup"] and "--python 3.11" in spec["setup"]
    filled = re.sub(r"\$(\w+)", lambda m: spec["envs"][m[1]], spec["run"])
    assert str(accepted(of_lgrpo(filled), int(spec["resources"]["accelerators"].rpartition("-")[2])).workdir).startswith("gs:/")
    assert spec["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
