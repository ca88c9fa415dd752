"""Tokens of an imported model: those without a row, those that an import adds, and those that end a completion."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from safetensors.numpy import load_file

from lgrpo.config import DataConfig, ExperimentConfig
from lgrpo.config.overrides import parse_overrides
from lgrpo.config.reads import end_ids
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.errors import UserError
from lgrpo.models.spec import abstract_params
from lgrpo.runs.checkpoint import load_params
from lgrpo.runs.convert import describe_import, export_hf, import_hf


def test_tokens_beyond_the_rows(hf_folder, tmp_path):
    folder = hf_folder("hf_qwen2", "<|compress_token|>")
    with pytest.raises(UserError, match=r"1 token\(s\) have no row among the model's 96: '<\|compress_token\|>' \(96\)"):
        import_hf(str(folder), tmp_path / "w0")
    dropped = import_hf(str(folder), tmp_path / "w1", extra_tokens="drop")
    assert dropped.model.vocab_size == 96 and load_tokenizer(dropped.data).find("<|compress_token|>") is None
    assert json.loads((tmp_path / "w1" / "hf" / "tokenizer_config.json").read_text())["added_tokens_decoder"] == {}
    padded = import_hf(str(folder), tmp_path / "w2", extra_tokens="pad")
    assert padded.model.vocab_size == 128
    params = load_params(tmp_path / "w2", abstract_params(padded.model))
    theirs = load_file(folder / "model.safetensors")
    for ours, name in ((params["embed"], "model.embed_tokens.weight"), (params["unembed"].T, "lm_head.weight")):
        np.testing.assert_array_equal(np.asarray(ours)[:96], theirs[name])
        np.testing.assert_allclose(np.asarray(ours)[96:], np.broadcast_to(theirs[name].mean(0), (32, 32)), atol=1e-6)
    assert export_hf(tmp_path / "w2", tmp_path / "out") == ["model.safetensors"]
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].shape == (128, 32)


@pytest.mark.parametrize("name", ["hf_llama", "hf_qwen2"])
def test_added_tokens_have_rows_of_their_own(hf_folder, tmp_path, capsys, name):
    """`5 7` is spelled by two tokens, `zebra` by none; `<think>` is one already."""
    folder = hf_folder(name)
    options = {"extra_tokens": "drop", "add": ["57zebra", "<think>", "<a>", "<b>"]}
    words = load_tokenizer(DataConfig(tokenizer=str(folder)))
    assert words.find("<unk>") in words.encode("<a>")
    cfg = import_hf(str(folder), tmp_path / "w", **options)
    tokenizer = load_tokenizer(cfg.data)
    assert [tokenizer.find(text) for text in ("57zebra", "<a>", "<b>", "<think>")] == [96, 97, 98, 3] and cfg.model.vocab_size == 128
    assert tokenizer.encode("5 <a> 7") == [words.find("5"), 97, words.find("7")]
    params, theirs = load_params(tmp_path / "w", abstract_params(cfg.model)), load_file(folder / "model.safetensors")
    tables = {"model.embed_tokens.weight": params["embed"]} | ({"lm_head.weight": params["unembed"].T} if "unembed" in params else {})
    for key, ours in tables.items():
        ours, table = np.asarray(ours), theirs[key]
        np.testing.assert_array_equal(ours[:96], table)
        noise = ours[96:99] - table.mean(0)
        assert 0.05 * table.std() < noise.std() < 0.15 * table.std() and len(np.unique(ours[96:99], axis=0)) == 3
    said = capsys.readouterr().err
    assert "'<think>': tokens of" in said and "'<a>' = 97: its row is the mean of all tokens and a little noise" in said
    assert "the tables are padded from 96 to 128 rows" in said
    export_hf(tmp_path / "w", tmp_path / "out")
    again = import_hf(str(tmp_path / "out"), tmp_path / "w2")
    assert load_tokenizer(again.data).find("<b>") == 98 and again.model == cfg.model
    decoder = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert decoder["98"]["content"] == "<b>" and not decoder["98"]["special"]


@pytest.mark.parametrize("text", ["", " ", " a", "a\n", "\ud800"])
def test_what_cannot_be_a_token(hf_folder, tmp_path, text):
    with pytest.raises(UserError, match=r"--add-tokens .*: give printable text"):
        import_hf(str(hf_folder()), tmp_path / "w", add=[text])


def test_several_end_tokens_are_all_kept(hf_folder, tmp_path):
    """config.json and generation_config.json name them; the tokenizer's own is that of training."""
    folder = hf_folder("hf_llama", eos_token_id=[5, 1])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "temperature": 0.6}))
    cfg = import_hf(str(folder), tmp_path / "w")
    assert (cfg.data.eos, cfg.data.eos_id) == ("<eos>", 1)
    assert (cfg.data.more_eos, cfg.data.more_eos_ids) == (("user", "<pad>"), (5, 2))
    text = describe_import(cfg, tmp_path / "w")
    assert (
        "'<eos>' = 1 and 'user' = 5 and '<pad>' = 2" in text and "--data.eos '<eos>' --data.more-eos user '<pad>' --data.template" in text
    )
    line = shlex.split(text.partition("start from it with: ")[2])
    again = resolve(parse_overrides(ExperimentConfig(model=cfg.model), line), load_tokenizer(cfg.data))
    assert end_ids(again.data) == (1, 5, 2)  # a run that is started as the line says
    export_hf(tmp_path / "w", tmp_path / "out")
    ends = {name: json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] for name in ("config.json", "generation_config.json")}
    assert {name: sorted(ids) for name, ids in ends.items()} == {"config.json": [1, 2, 5], "generation_config.json": [1, 2, 5]}
    assert end_ids(import_hf(str(tmp_path / "out"), tmp_path / "w2").data) == (1, 5, 2)


@pytest.mark.parametrize(
    ("ends", "says"),
    [("<eos>", "has '<eos>'"), ([1, None], "has None"), ([1, True], "has True"), ([1, -1], "has -1"), (1.0, "has 1.0"), (96, "has 96, which is no token"),
     (2**70, "has 118.*, which is no token")],
)  # fmt: skip
def test_end_tokens_that_are_none(hf_folder, tmp_path, ends, says):
    with pytest.raises(UserError, match=rf"config\.json: eos_token_id {says}"):
        import_hf(str(hf_folder(eos_token_id=ends)), tmp_path / "w")
