"""docs/decode_with_torch.py against our rollout: the same weights, the same noise, the same mixtures. Needs torch (`make parity`)."""

from __future__ import annotations

import functools
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from support import change

from lgrpo.keys import row_keys
from lgrpo.latent import mixture
from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gumbel import Gumbel
from lgrpo.latent.noise import gumbel
from lgrpo.latent.rollout import rollout
from lgrpo.models.spec import abstract_params
from lgrpo.runs.checkpoint import load_params
from lgrpo.runs.convert import export_hf, import_hf
from lgrpo.types import PromptBatch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SCRIPT = pathlib.Path(__file__).parents[2] / "docs" / "decode_with_torch.py"
STEPS, KEY = 12, 5
# (settings of the latent step, whether there is noise)
CASES = {
    "exact": ({"law": Exact(), "noise_scale": 0.7, "tau": 0.5}, True),
    "exact, no noise": ({"law": Exact(), "max_latent": 6}, False),
    "gumbel": ({"law": Gumbel(top_p=0.6), "max_latent": 6}, True),
    "gumbel, sampled end, all tokens": ({"law": Gumbel(end_rule="sampled", one_sided=False, clamp=None, top_p=1.0), "min_latent": 2}, True),
    "soft": ({"law": Gumbel(order="topk_then_perturb"), "tau": 0.1, "max_latent": 3}, True),
    "gumbel, no noise": ({"law": Gumbel(), "max_latent": 4}, False),
}


@functools.cache
def script():
    spec = importlib.util.spec_from_file_location("decode_with_torch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def export(hf_source, tmp_path_factory):
    """(config of the import, its parameters, folder of the export)."""
    folder = tmp_path_factory.mktemp("export")
    cfg = import_hf(str(hf_source), folder / "w")
    export_hf(folder / "w", folder / "out")
    return cfg, load_params(folder / "w", abstract_params(cfg.model)), folder / "out"


def whole_noise(logits, keys, law):
    """The definition, in place of the sampler's short cuts: noise on all tokens."""
    lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return *mixture._choose_full(logits - lse, gumbel(keys, logits.shape[1]), law), lse


@pytest.mark.parametrize("case", CASES)
def test_mixtures_and_answers_are_those_of_our_rollout(export, monkeypatch, case):
    settings, noisy = CASES[case]
    imported, params, folder = export
    monkeypatch.setattr(mixture, "_choose_noisy", whole_noise)
    cfg = change(imported, **{f"rollout__latent__{name}": value for name, value in ({"k": 4} | settings).items()})
    cfg = change(cfg, rollout__group_size=2 if noisy else 1, rollout__max_new_tokens=STEPS, rollout__answer__sampler="greedy")
    if not noisy:
        cfg = change(cfg, rollout__latent__noise_scale=0.0)
    words = np.random.default_rng(0).integers(8, 96, (3, 6)).astype(np.int32)
    prompts = PromptBatch(words, np.ones_like(words, bool), np.arange(3, dtype=np.int32))
    with jax.default_matmul_precision("highest"):
        ours = jax.tree.map(np.asarray, rollout(params, prompts, jax.random.key(KEY), cfg=cfg))
    keys = row_keys(jax.random.key(KEY), prompts.uid, cfg.rollout.group_size)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    c = latent_json(folder, cfg)
    assert 0 < ours.is_latent.sum() < ours.mask.sum(), "nothing was tested"
    for n in range(len(ours.mask)):

        def noise(step, n=n):
            return torch.tensor(np.asarray(gumbel(jax.random.fold_in(keys[n], step)[None], 96)[0])) if noisy else None

        ids = torch.tensor(words[n // cfg.rollout.group_size][None]).long()
        latents, answer = script().decode(model, ids, c, [cfg.data.eos_id], STEPS, noise)
        at = np.flatnonzero(ours.is_latent[n])
        assert len(latents) == len(at)
        for t, (chosen, weights) in zip(at, latents, strict=True):
            np.testing.assert_array_equal(chosen, ours.ids[n, t])
            np.testing.assert_allclose(weights, ours.weights[n, t], atol=1e-4)
        assert answer == ours.tokens[n, len(at) + 1 :][ours.mask[n, len(at) + 1 :]].tolist()


def latent_json(folder, cfg):
    """What an export of these settings says."""
    from lgrpo.runs.convert import latent_config

    prompt = json.loads((folder / "latent_config.json").read_text())["prompt"]
    return json.loads(json.dumps(latent_config(cfg, prompt)))


def test_the_script_decodes_an_export(export, tmp_path):
    folder = shutil.copytree(export[2], tmp_path / "out")
    edits = {"latent_config.json": {"k": 3, "max_latent": 4}, "config.json": {"eos_token_id": list(range(96))}}  # random weights hardly end
    for name, changes in edits.items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))
    done = subprocess.run([sys.executable, SCRIPT, folder, "7 9", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *latents, answer = done.stdout.splitlines()
    assert len(latents) == 4 and all(line.count(":0.") == 3 for line in latents)
    assert len(answer.split()) == 1


def test_it_stays_short():
    assert len(SCRIPT.read_text().splitlines()) <= 60
