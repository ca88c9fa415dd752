"""`make smollm2 BUDGET=smoke` with a tiny local model and problems at hand, as a process of its own that is stopped in the middle and goes on."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import string
import subprocess
import time

import forks
import pytest
import tokenizers
from flags import flags

from experiments.smollm2.stages import BUDGETS, KEPT, data_settings, latents
from experiments.smollm2.weights import TOKENS
from lgrpo.runs.convert import import_hf

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "hf_llama"


def write_weights(folder, root):
    """A tiny Llama whose tokens are characters, imported as the study imports its model."""
    source = root / "hf"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, source / name)
    characters = [" ", *string.ascii_lowercase, *string.digits, *"<>+-*/=#.?"]
    vocab = {text: i for i, text in enumerate(["<unk>", "<eos>", "<pad>", *characters])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>"))
    inner.decoder = tokenizers.decoders.Fuse()
    inner.add_special_tokens(["<unk>", "<eos>", "<pad>"])
    inner.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}))
    import_hf(str(source), folder, dtype="float32", add=TOKENS)


def write_problems(folder, settings):
    """What lgrpo.data.gym leaves, of problems that need no package."""
    folder.mkdir()
    splits = {}
    for at, (split, count) in enumerate({"train": settings.train, "valid": settings.valid, "test": settings.test, "held_out": 8}.items()):
        pairs = [((i * 7 + at) % 9 + 1, (i * 5 + at) % 8 + 1) for i in range(count)]
        records = [{"problem": f"{a} pens and {b} pens?", "cot": f"<<{a}+{b}={a + b}>>", "answer": str(a + b)} for a, b in pairs]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        splits[split] = {"records": count, "dropped": {}}
    about = {"settings": {name: value for name, value in dataclasses.asdict(settings).items() if name != "out"}, "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("smollm2")
    folder = root / "runs" / "smoke"
    folder.mkdir(parents=True)
    write_weights(folder / "weights", root)
    write_problems(folder / "data", data_settings(folder, BUDGETS["smoke"]))
    return folder


def start(study, transfer=None):
    environment = os.environ | {"XLA_FLAGS": flags()}  # one device, as on a user's machine
    options = ["--transfer", str(transfer)] if transfer else []
    command, where = forks.command("-m", "experiments.smollm2", "--budget", "smoke", "--workdir", study.parent, *options)
    return subprocess.Popen(command, cwd=ROOT, env=environment | where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stop_when(process, file):
    """SIGTERM as soon as the file is there; returns the exit code and what was said."""
    end = time.monotonic() + 600
    while process.poll() is None and not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=600)[0]
    return process.returncode, said


def test_the_smoke_budget_runs_and_goes_on_after_an_interruption(study):
    """Stopped in the evaluation of arms, after the stage's own (that training goes on where it was is the loops' own test); then with problems of
    people as well."""
    seed = study / "seed0"
    code, said = stop_when(start(study), seed / "latent_sft" / "eval" / "shards" / "kept=0_answer=10-00000-00000.jsonl")
    assert code != 0 and "Traceback" not in said, said[-3000:]
    assert set(json.loads((seed / "results.json").read_text())) == {"explicit_sft"}  # what is finished is there
    done = (seed / "latent_sft" / "stage.json").stat().st_mtime_ns
    people = study / "people"
    people.mkdir()
    for name in ("gsm8k", "svamp", "multiarith"):
        shutil.copyfile(study / "data" / "test.jsonl", people / f"{name}_test.jsonl")
    process = start(study, people)
    said = process.communicate(timeout=1200)[0]
    assert process.returncode == 0, said[-3000:]
    results = json.loads((seed / "results.json").read_text())
    assert list(results) == ["explicit_sft", "latent_sft", "exact", "explicit_grpo"]
    for name, result in results.items():
        latent = name in ("latent_sft", "exact")
        assert set(result["arms"]) == {"free", "forced", "floor", *["hardened"] * latent}
        assert list(result["curve"]) == [str(latents(n) if latent else n) for n in KEPT]
        assert set(result["transfer"]) == {"gsm8k", "svamp", "multiarith"} and set(result["held_out"]) == {"noise_free", "sampled"}
        assert result["with_start"]["perf/flop_total"] >= result["own"]["perf/flop_total"] > 0
    assert (seed / "latent_sft" / "stage.json").stat().st_mtime_ns == done  # what is finished is not made again
    assert (study / "report.html").exists()
