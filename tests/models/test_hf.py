"""Weights in and out: golden logits of transformers, bit-exact round trips, and every way in which a folder can be wrong."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lgrpo.config import MeshConfig
from lgrpo.data.prompts import load_tokenizer
from lgrpo.errors import UserError
from lgrpo.models import presets
from lgrpo.models.decoder import causal_mask, forward, logits_of, prompt_positions
from lgrpo.models.hf import EMBED, _moments, check_names, fresh_row, hf_shape, hf_tensors, import_params
from lgrpo.models.hf_io import TensorFiles, pack
from lgrpo.models.spec import abstract_params, param_shardings
from lgrpo.runs.checkpoint import load_params, saved_config
from lgrpo.runs.convert import describe_import, export_hf, fetch, import_hf
from lgrpo.sharding import make_mesh

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NAMES = ("hf_llama", "hf_qwen2")


def edit(folder, change, file="model.safetensors"):
    """Rewrites the weights: change(dict of arrays) in place."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


def split_files(folder, parts=3):
    """The same weights in several files with an index."""
    tensors = load_file(folder / "model.safetensors")
    weight_map = {name: f"model-{1 + i % parts:05d}-of-{parts:05d}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def bits(folder):
    """Every tensor of a folder as (type, shape, bytes)."""
    out = {}
    for file in folder.glob("*.safetensors"):
        out |= {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in load_file(file).items()}
    return out


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(hf_folder, tmp_path, name):
    cfg = import_hf(str(hf_folder(name)), tmp_path / "w")
    params = load_params(tmp_path / "w", abstract_params(cfg.model))
    golden = np.load(GOLDEN / name / "golden.npz")
    ids, mask = jnp.asarray(golden["ids"]), jnp.asarray(golden["mask"])  # rows padded on the left by 0, 5 and 11

    @jax.jit
    def run(params):
        return logits_of(params, forward(params, cfg.model, params["embed"][ids], prompt_positions(mask), causal_mask(mask)))

    with jax.default_matmul_precision("highest"):
        logits = np.asarray(run(params))
    assert np.abs(logits - golden["logits"])[golden["mask"]].max() < 1e-4


def test_weights_that_are_not_finite_are_not_imported(hf_folder, tmp_path):
    folder = hf_folder()
    edit(folder, lambda t: t["model.norm.weight"].__setitem__(0, np.inf))
    with pytest.raises(UserError, match=r"1 of its .* tensors are not finite .*final_norm.*; download"):
        import_hf(str(folder), tmp_path / "w")
    assert not [p for p in (tmp_path / "w" / "checkpoints").iterdir() if p.name.isdecimal()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_import_then_export_is_bit_exact(hf_folder, tmp_path, name, dtype, sharded):
    folder = hf_folder(name)
    if dtype == "bfloat16":
        edit(folder, lambda t: t.update({k: v.astype(ml_dtypes.bfloat16) for k, v in t.items()}))
    if sharded:
        split_files(folder)
    cfg = import_hf(str(folder), tmp_path / "w")
    assert cfg.model.param_dtype == cfg.model.dtype == dtype and saved_config(tmp_path / "w") == cfg
    files = export_hf(tmp_path / "w", tmp_path / "out", shard_bytes=30_000 if sharded else 10**9)
    assert (len(files) > 1) == sharded == (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert bits(tmp_path / "out") == bits(folder)
    again = import_hf(str(tmp_path / "out"), tmp_path / "w2")  # and what was exported can be imported
    assert again.model == cfg.model and again.rollout.latent == cfg.rollout.latent
    latent = json.loads((tmp_path / "out" / "latent_config.json").read_text())
    assert {name: latent[name] for name in ("think_end_id", "k", "tau", "noise_scale")} == {
        "think_end_id": 4,
        "k": 10,
        "tau": 1.0,
        "noise_scale": 1.0,
    }
    assert load_tokenizer(again.data).encode("user 7") == load_tokenizer(cfg.data).encode("user 7")


def test_every_device_reads_only_its_part(hf_folder, monkeypatch):
    folder = hf_folder("hf_qwen2")
    files = TensorFiles(folder)
    cfg = dataclasses.replace(saved_model(folder), n_kv_heads=1)
    read, sizes = TensorFiles.read, []

    def counted(self, name, index=()):
        out = read(self, name, index)
        sizes.append((name, out.size / np.prod(self.shape(name))))
        return out

    monkeypatch.setattr(TensorFiles, "read", counted)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    params = import_params(files, cfg, param_shardings(cfg, mesh), rows=96)
    assert max(share for name, share in sizes if "norm" not in name and "bias" not in name) == 0.25
    wq = params["blocks"]["wq"]
    assert wq.sharding.shard_shape(wq.shape) == (2, 8, 4, 8)
    theirs = load_file(folder / "model.safetensors")
    for layer in range(2):
        ours = np.asarray(wq)[layer]
        np.testing.assert_array_equal(ours.transpose(1, 2, 0).reshape(32, 32), theirs[f"model.layers.{layer}.self_attn.q_proj.weight"])
        out = np.asarray(params["blocks"]["wo"])[layer].reshape(32, 32).T
        np.testing.assert_array_equal(out, theirs[f"model.layers.{layer}.self_attn.o_proj.weight"])
    np.testing.assert_array_equal(np.asarray(params["unembed"]).T, theirs["lm_head.weight"])


def saved_model(folder):
    from lgrpo.models.hf_config import config_from_hf

    return config_from_hf(json.loads((folder / "config.json").read_text()), "f")


@pytest.mark.parametrize("mesh", [MeshConfig(data=1, fsdp=-1), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=2, tensor=4)])
def test_any_mesh_gives_the_same_weights(hf_folder, mesh):
    folder = hf_folder("hf_llama")
    cfg = dataclasses.replace(saved_model(folder), n_kv_heads=2)
    if mesh.tensor == 4:
        with pytest.raises(ValueError, match="kv_heads"):
            param_shardings(cfg, make_mesh(mesh))
        return
    files = TensorFiles(folder)
    one = import_params(files, cfg, param_shardings(cfg, make_mesh(MeshConfig(data=-1))), rows=96)
    many = import_params(files, cfg, param_shardings(cfg, make_mesh(mesh)), rows=96)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), one, many))


def test_a_mesh_that_does_not_divide_is_a_user_error(hf_folder, tmp_path):
    with pytest.raises(UserError, match="--fsdp and --tensor"):
        import_hf(str(hf_folder()), tmp_path / "w", mesh=MeshConfig(data=1, fsdp=1, tensor=-1))


def drop(name):
    return lambda t: t.pop(name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop("model.layers.1.mlp.up_proj.weight"), r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing \(1 in all\)"),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t["model.norm.weight"]}),
            r"layers\.2\.mlp\.up_proj\.weight has no place",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(31, np.float32)}), r"model\.norm\.weight has shape \(31,\)"),
        (lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), "lm_head.weight differs"),
        (lambda t: t.update({"model.norm.weight": np.ones(32, np.float64)}), "model.norm.weight is F64"),
        (lambda t: t.update({"model.norm.weight": np.ones(32, ml_dtypes.bfloat16)}), "choose one type with --dtype"),
        (lambda t: t.update({k: v.astype(np.float16) for k, v in t.items()}), "float16 weights"),
    ],
)
def test_tensors_that_do_not_fit_are_named(hf_folder, tmp_path, change, says):
    folder = hf_folder("hf_llama")
    edit(folder, change)
    with pytest.raises(UserError, match=says):
        import_hf(str(folder), tmp_path / "w")


def test_a_chosen_type_and_an_equal_head(hf_folder, tmp_path):
    folder = hf_folder("hf_llama")
    edit(folder, lambda t: t.update({k: v.astype(np.float16) for k, v in t.items()}))
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    cfg = import_hf(str(folder), tmp_path / "w", dtype="float32")
    assert "unembed" not in load_params(tmp_path / "w", abstract_params(cfg.model))
    untied = hf_folder("hf_llama", tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"lm_head\.weight is missing .* tie_word_embeddings=false"):
        import_hf(str(untied), tmp_path / "w2")


def test_broken_folders(hf_folder, tmp_path):
    def refused(folder, says):
        with pytest.raises(UserError, match=says):
            import_hf(str(folder), tmp_path / "w")

    refused(tmp_path / "nowhere", "no such folder, and no repo id either")
    folder = hf_folder()
    (folder / "config.json").write_text("{")
    refused(folder, r"config\.json: cannot be read")
    (folder / "config.json").unlink()
    refused(folder, r"config\.json: does not exist")
    folder = hf_folder()
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    refused(folder, "not a readable safetensors file")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, "safe_serialization=True")
    folder = hf_folder()
    (folder / "tokenizer.json").unlink()
    refused(folder, "no tokenizer.json")
    folder = hf_folder()
    split_files(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index["weight_map"] | {"x": "../y"}}))
    refused(folder, "no plain file name")
    weight_map = {k: v for k, v in index["weight_map"].items() if k != "model.norm.weight"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, r"model\.norm\.weight is in the files but not in")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "named in model.safetensors.index.json, but does not exist")


def test_an_added_token_starts_where_its_text_was(tmp_path, hf_folder):
    folder = hf_folder()
    files = TensorFiles(folder)
    table = load_file(folder / "model.safetensors")[EMBED]
    mean, deviation = _moments(files, EMBED, 96, chunk=7)
    np.testing.assert_allclose(mean, table.mean(0), atol=1e-6)
    np.testing.assert_allclose(deviation, table.std(), rtol=1e-6)
    row = fresh_row(files, EMBED, 96, [5, 9, 9], mean, 0.0)
    np.testing.assert_allclose(row, (table[5] + 2 * table[9]) / 3, rtol=1e-6)
    # stored rows that no token has (a padded table) are taken first, and each shard gets its part of the same row
    cfg = dataclasses.replace(saved_model(folder), n_kv_heads=2)
    one, many = (
        import_params(files, cfg, param_shardings(cfg, make_mesh(mesh)), rows=96, fresh={90: [5, 9], 17: []})["embed"]
        for mesh in (MeshConfig(data=-1), MeshConfig(data=2, fsdp=2, tensor=2))
    )
    np.testing.assert_array_equal(one, many)
    changed = np.flatnonzero((np.asarray(one) != table).any(1))
    assert changed.tolist() == [17, 90]


def test_a_workdir_or_folder_in_use_is_refused(hf_folder, tmp_path):
    folder = str(hf_folder())
    import_hf(folder, tmp_path / "w")
    with pytest.raises(UserError, match="holds checkpoints"):
        import_hf(folder, tmp_path / "w")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export_hf(tmp_path / "w", tmp_path / "out")
    with pytest.raises(UserError, match="no checkpoints there"):
        export_hf(tmp_path / "nothing", tmp_path / "out2")
    assert not list(tmp_path.glob(".out*"))


def test_repo_ids_go_through_huggingface_hub(hf_folder, tmp_path, monkeypatch):
    import huggingface_hub

    folder, calls = hf_folder(), []

    def snapshot_download(repo_id, *, revision, allow_patterns, ignore_patterns):
        calls.append((repo_id, revision, "*.safetensors" in allow_patterns, any(".bin" in p or ".py" in p for p in allow_patterns)))
        if repo_id == "no/such":
            raise OSError("401 Client\nError")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    cfg = import_hf("owner/name", tmp_path / "w", revision="main")
    assert calls == [("owner/name", "main", True, False)] and cfg.model.vocab_size == 96
    with pytest.raises(UserError, match=r"huggingface_hub cannot download it \(OSError: 401 Client Error\)"):
        fetch("no/such")
    with pytest.raises(UserError, match="has no revisions"):
        fetch(str(folder), "main")


def test_an_import_says_how_to_use_it_and_names_its_tokens(hf_folder, tmp_path):
    cfg = import_hf(str(hf_folder()), tmp_path / "w")
    text = describe_import(cfg, tmp_path / "w")
    assert "'</think>' = 4" in text and "'<eos>' = 1" in text and f"--train.init-from {tmp_path / 'w'}" in text
    assert cfg.data.template == "chat" and saved_config(tmp_path / "w").model.rope_scaling.factor == 8.0


def test_latent_settings_are_imported_and_checked(hf_folder, tmp_path):
    folder = hf_folder()

    def write(**settings):
        (folder / "latent_config.json").write_text(json.dumps(settings))

    write(k=3, tau=0.5, clamp=[-1.0, 2.0], think_end_id=4)
    latent = import_hf(str(folder), tmp_path / "w").rollout.latent
    assert (latent.k, latent.tau, latent.law.clamp) == (3, 0.5, (-1.0, 2.0))
    for settings, says in (
        ({"think_end_id": 5}, r"data\.think_end_id: 5, but the tokenizer writes '</think>' with 4"),
        ({"topk": 3}, "topk is unknown"),
        ({"k": "3"}, r"rollout\.latent\.k: '3' is a str"),
    ):
        write(**settings)
        with pytest.raises(UserError, match=says):
            import_hf(str(folder), tmp_path / "other")


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 10**6}, {"num_hidden_layers": 3 * 10**7}, {"hidden_size": 2**40}, {"vocab_size": 10**12}]
)
def test_sizes_are_compared_with_the_tensors_before_anything_is_built(hf_folder, tmp_path, changes):
    folder = hf_folder("hf_llama", **changes)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"config\.json (says|means)"):
        import_hf(str(folder), tmp_path / "w")
    assert time.monotonic() - start < 1 and not (tmp_path / "w").exists()


def test_names_and_shapes_of_the_released_models():
    tensors = {name: hf_shape(spec) for name, spec, _ in hf_tensors(presets.LLAMA_3_2_1B)}
    assert len(tensors) == 146 and "lm_head.weight" not in tensors
    assert tensors["model.embed_tokens.weight"] == (128256, 2048)
    assert tensors["model.layers.15.self_attn.k_proj.weight"] == (512, 2048)
    assert tensors["model.layers.0.mlp.down_proj.weight"] == (2048, 8192)
    tensors = {name: hf_shape(spec) for name, spec, _ in hf_tensors(presets.QWEN2_5_MATH_7B)}
    assert len(tensors) == 339 and tensors["lm_head.weight"] == (152064, 3584)
    assert tensors["model.layers.27.self_attn.q_proj.weight"] == (3584, 3584)
    assert tensors["model.layers.27.self_attn.v_proj.bias"] == (512,)
    assert tensors["model.layers.3.self_attn.o_proj.weight"] == (3584, 3584)


def test_files_are_packed_in_order():
    assert pack([("a", 3), ("b", 3), ("c", 3)], 6) == [["a", "b"], ["c"]]
    assert pack([("a", 10), ("b", 1)], 6) == [["a"], ["b"]]
    assert pack([("a", 1)], 6) == [["a"]]


def test_shapes_are_checked_before_anything_is_read(hf_folder):
    folder = hf_folder("hf_llama", hidden_size=64)
    with pytest.raises(UserError, match=r"but config\.json means"):
        check_names(TensorFiles(folder), saved_model(folder), rows=96)
