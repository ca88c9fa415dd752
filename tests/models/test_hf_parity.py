"""The decoder against transformers, on random tiny models. Needs requirements-parity.txt (`make parity`); skipped without torch."""

from __future__ import annotations

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgrpo.config import AnswerConfig, DataConfig, ExperimentConfig, LatentConfig, RolloutConfig
from lgrpo.latent.rollout import rollout
from lgrpo.models.decoder import causal_mask, forward, logits_of, prompt_positions
from lgrpo.models.spec import abstract_params
from lgrpo.runs.checkpoint import load_params
from lgrpo.runs.convert import export_hf, import_hf
from lgrpo.types import PromptBatch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CASES = {
    "llama_mha": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama_gqa2_tied_scaled": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True, "scaled": True}),
    "llama_gqa4_scaled": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": False, "scaled": True}),
    "qwen2_mha_tied": ("Qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "qwen2_gqa2": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen3_gqa2": ("Qwen3", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen3_gqa4_tied": ("Qwen3", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2_gqa4_tied": ("Qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
}
STEPS = 64


def golden_script():
    spec = importlib.util.spec_from_file_location("make_hf_golden", GOLDEN / "make_hf_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(transformers model, our config, our parameters, folder of the import) with equal weights."""
    script = golden_script()
    family, extra = CASES[request.param]
    extra = dict(extra)
    if extra.pop("scaled", False):
        extra["rope_scaling"] = script.LLAMA3
    model = script.build(family, extra, seed=len(request.param))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    tokenizer_writer()(folder)
    cfg = import_hf(str(folder), folder / "w")
    return model, cfg.model, load_params(folder / "w", abstract_params(cfg.model)), folder


def tokenizer_writer():
    spec = importlib.util.spec_from_file_location("models_conftest", pathlib.Path(__file__).parent / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_tokenizer


def positions_of(mask):
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@jax.default_matmul_precision("highest")
def our_logits(params, cfg, embeds, mask):
    hidden = forward(params, cfg, embeds, prompt_positions(mask), causal_mask(mask))
    return np.asarray(logits_of(params, hidden))


def worst(ours, theirs, mask):
    return float(np.abs(ours - theirs.numpy())[mask.numpy()].max())


def test_logits_with_left_padding(pair):
    model, cfg, params, _ = pair
    ids, mask = golden_script().inputs()
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions_of(mask)).logits
    ours = our_logits(params, cfg, params["embed"][jnp.asarray(ids.numpy())], jnp.asarray(mask.numpy()))
    gap = worst(ours, theirs, mask)
    print(f"max |difference| of logits: {gap:.2e}")
    assert gap < 1e-4


def test_logits_with_embeddings_as_input(pair):
    """Mixtures of token embeddings, as a latent step feeds them."""
    model, cfg, params, _ = pair
    _, mask = golden_script().inputs()
    rng = np.random.default_rng(3)
    embeds = np.einsum("nsk,nskd->nsd", rng.dirichlet(np.ones(4), (3, 24)), np.asarray(params["embed"])[rng.integers(0, 96, (3, 24, 4))])
    embeds = embeds.astype(np.float32)
    with torch.no_grad():
        theirs = model(inputs_embeds=torch.from_numpy(embeds), attention_mask=mask.long(), position_ids=positions_of(mask)).logits
    assert worst(our_logits(params, cfg, jnp.asarray(embeds), jnp.asarray(mask.numpy())), theirs, mask) < 1e-4


def test_greedy_tokens(pair):
    """64 tokens from the cached decode, prompts padded on the left, against generate()."""
    model, cfg, params, _ = pair
    ids, mask = golden_script().inputs(seed=5)
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # Llama's default is 2
    settings = transformers.GenerationConfig(max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.no_grad():
        theirs = model.generate(input_ids=ids, attention_mask=mask.long(), generation_config=settings)[:, ids.shape[1] :]
    unused = sorted(set(range(96)) - set(theirs.numpy().ravel().tolist()))  # our sampler needs end tokens; none may come
    run = ExperimentConfig(
        model=cfg,
        data=DataConfig(think_end_id=unused[0], eos_id=unused[1]),
        rollout=RolloutConfig(
            mode="explicit", group_size=1, max_new_tokens=STEPS, latent=LatentConfig(k=1), answer=AnswerConfig(sampler="greedy")
        ),
    )
    prompts = PromptBatch(jnp.asarray(ids.numpy(), jnp.int32), jnp.asarray(mask.numpy()), jnp.arange(3, dtype=jnp.int32))
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(rollout, static_argnames=("cfg",))(params, prompts, jax.random.key(0), cfg=run)
    assert bool(ours.mask.all())
    np.testing.assert_array_equal(np.asarray(ours.tokens), theirs.numpy())


def test_transformers_reads_our_export(pair, tmp_path):
    model, _, _, folder = pair
    export_hf(folder / "w", tmp_path / "out", shard_bytes=30_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids, mask = golden_script().inputs()
    with torch.no_grad():
        a, b = (m(input_ids=ids, attention_mask=mask.long(), position_ids=positions_of(mask)).logits for m in (model, again))
    assert worst(a.numpy(), b, mask) < 1e-5  # another attention implementation
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert tokenizer.encode("user 7", add_special_tokens=False) == [5, 8 + 7] and tokenizer.eos_token == "<eos>"
