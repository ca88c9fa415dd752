"""The tokenizer file, the templates, and the config fields that depend on them."""

from __future__ import annotations

import dataclasses

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lgrpo.config import DataConfig, ExperimentConfig, ModelConfig
from lgrpo.data import make_tokenizer, prompts, word_problems
from lgrpo.errors import UserError


@pytest.fixture
def bytes_tokenizer(tmp_path):
    """A byte-level tokenizer in a folder, as checkpoints carry it; it has no token for `</think>`, pads and truncates by default."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"</": 256}
    inner = tokenizers.Tokenizer(models.BPE(vocab, merges=[("<", "/")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    inner.enable_truncation(4)
    inner.enable_padding(length=64)
    inner.save(str(tmp_path / "tokenizer.json"))
    return DataConfig(tokenizer=str(tmp_path), eos="<|endoftext|>")


def test_the_committed_file_is_what_the_script_builds():
    assert prompts.ASSET.read_text(encoding="utf-8") == make_tokenizer.render()


@pytest.mark.parametrize("difficulty", word_problems.DIFFICULTIES)
@pytest.mark.parametrize("template", ["plain", "instruct"])
def test_generated_problems_are_covered_and_fit_the_defaults(tokenizer, difficulty, template):
    unk = tokenizer.id_of("<unk>")
    extra = len(tokenizer.encode(prompts.render_prompt("", template))) - 1
    for i in range(400):
        record = word_problems.generate(difficulty, "train", i)
        prompt = tokenizer.encode(prompts.render_prompt(record["problem"], template))
        chain = tokenizer.encode(prompts.render_chain(record["cot"]))
        answer = tokenizer.encode(prompts.render_answer(record["answer"], template))
        assert unk not in prompt + chain + answer
        assert len(prompt) <= DataConfig().max_prompt + extra
        assert len(chain) <= 48 and len(answer) <= 7
        assert tokenizer.token_of(prompt[-1]) == "<think>"


def test_every_word_of_every_pattern_is_a_token(tokenizer):
    for pattern in word_problems.all_patterns():
        assert tokenizer.id_of("<unk>") not in tokenizer.encode(pattern.format(s="Ann", n=99, o="pens", m="pens", r="Tom")), pattern


def test_pieces(tokenizer):
    def pieces(text):
        return [tokenizer.token_of(i) for i in tokenizer.encode(text)]

    assert pieces("<<12+3=15>><<15-4=11>></think>#### 11<eos>") == (
        ["<<", "12", "+", "3", "=", "15", ">>", "<<", "15", "-", "4", "=", "11", ">>", "</think>", "####", "11", "<eos>"]
    )
    assert pieces("\\boxed{7}") == ["\\boxed", "{", "7", "}"]
    assert pieces("Ann~100 zebras") == ["Ann", "<unk>", "<unk>", "<unk>"]  # nothing vanishes
    assert all(len(tokenizer.encode(str(n))) == 1 for n in range(100))
    assert tokenizer.decode(tokenizer.encode("#### 11<eos>")) == "#### 11 <eos>"
    assert tokenizer.decode_batch([[], tokenizer.encode("11")]) == ["", "11"]
    assert list(tokenizer.encode_batch(["Tom has 3 pens.", ""])) == [tokenizer.encode("Tom has 3 pens."), []]
    with pytest.raises(UserError, match="no token '<bos>'"):
        tokenizer.id_of("<bos>")


def test_templates():
    assert prompts.render_prompt("Why?", "plain") == "Why?<think>"
    assert prompts.render_prompt("Why?", "instruct") == (
        "Please reason step by step, and put your final answer within \\boxed{}.\nWhy?<think>"
    )
    assert prompts.render_chain(" <<1+2=3>> \n<<3*2=6>> ") == "<<1+2=3>><<3*2=6>>"
    assert prompts.render_answer("11", "plain") == "#### 11"
    assert prompts.render_answer("11", "instruct") == "\\boxed{11}"
    for render in (prompts.render_prompt, prompts.render_answer):
        with pytest.raises(UserError, match="plain, instruct or chat"):
            render("x", "other")


def test_resolve_fills_in_and_is_idempotent(tokenizer):
    cfg = prompts.resolve(ExperimentConfig(), tokenizer)
    assert cfg.model.vocab_size == tokenizer.vocab_size == len(make_tokenizer.vocabulary())
    assert tokenizer.token_of(cfg.data.think_end_id) == "</think>" and tokenizer.token_of(cfg.data.eos_id) == "<eos>"
    assert prompts.resolve(cfg, tokenizer) == cfg
    assert prompts.resolve(ExperimentConfig(model=ModelConfig(vocab_size=256)), tokenizer).model.vocab_size == 256


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ({"vocab_size": 100}, {}, r"model\.vocab_size: 100"),
        ({}, {"think_end_id": 3}, r"data\.think_end_id: 3, but .* 4"),
        ({}, {"think_end_id": 524}, "outside the vocabulary"),
        ({}, {"eos_id": -2}, "outside the vocabulary"),
        ({}, {"eos": "<|endoftext|>"}, "no token"),
        ({}, {"think_end": "<stop>"}, r"data\.think_end.*cannot encode"),
        ({}, {"think_end": ""}, r"data\.think_end.*cannot encode"),
        ({}, {"think_end": "<eos>"}, "are both token"),
    ],
)
def test_resolve_refuses_contradictions(tokenizer, model, data, says):
    cfg = ExperimentConfig(model=ModelConfig(**model), data=DataConfig(**data))
    with pytest.raises(UserError, match=says):
        prompts.resolve(cfg, tokenizer)


def test_a_tokenizer_that_spells_the_end_of_thinking(bytes_tokenizer):
    tokenizer = prompts.load_tokenizer(bytes_tokenizer)
    ids = prompts.think_end_ids(bytes_tokenizer, tokenizer)
    assert [tokenizer.token_of(i) for i in ids] == ["</", "t", "h", "i", "n", "k", ">"]  # neither cut nor padded
    cfg = prompts.resolve(ExperimentConfig(data=bytes_tokenizer), tokenizer)
    assert cfg.data.think_end_id == ids[0] == 256
    assert prompts.pad_id(bytes_tokenizer, tokenizer) == cfg.data.eos_id
    file = dataclasses.replace(bytes_tokenizer, tokenizer=bytes_tokenizer.tokenizer + "/tokenizer.json")
    assert prompts.load_tokenizer(file).encode("9 Ω</") == tokenizer.encode("9 Ω</")
    assert tokenizer.decode(tokenizer.encode("9 Ω</")) == "9 Ω</"


def test_missing_and_broken_tokenizers(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        prompts.load_tokenizer(DataConfig(tokenizer=str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer file"):
        prompts.load_tokenizer(DataConfig(tokenizer=str(tmp_path)))


def test_describe_prompt_shows_text_and_ids(tokenizer):
    text = prompts.describe_prompt(tokenizer, tokenizer.encode(prompts.render_prompt("Tom has 3 pens.", "plain")))
    assert "Tom has 3 pens . <think>" in text and "<think>|3" in text and "[6 tokens]" in text


def test_own_instructions_and_worked_examples(tmp_path):
    file = tmp_path / "shots.txt"
    file.write_text("Q: 1+1\nA: 2\nQ: {problem}\nA:")
    shots = prompts.load_examples(DataConfig(few_shot=str(file)))
    assert prompts.render_prompt("2+{2}", "plain", "", few_shot=shots) == "Q: 1+1\nA: 2\nQ: 2+{2}\nA:"
    assert prompts.render_prompt("p", "plain", "<think>", few_shot="Q: x\n") == "Q: x\np<think>"
    assert prompts.render_prompt("p", "instruct", "<think>", instruction="Be brief.") == "Be brief.\np<think>"
    assert prompts.render_prompt("p", "instruct", "", instruction="") == "p"
    with pytest.raises(UserError, match=r"data\.few_shot"):
        prompts.load_examples(DataConfig(few_shot=str(tmp_path / "none")))


def test_texts_are_tokenised_by_parts(tokenizer, monkeypatch):
    """What the library keeps of a text is a hundred times its ids; all ids, in order, whatever the parts are."""
    sizes, inner = [], tokenizer.inner

    class Watched:
        def encode_batch_fast(self, texts, **settings):
            sizes.append(len(texts))
            return inner.encode_batch_fast(texts, **settings)

    texts = [f"Sam has {i} pens ." for i in range(10)]
    monkeypatch.setattr(prompts, "_PART", 4)
    assert list(prompts.TextTokenizer(Watched(), "watched").encode_batch(texts)) == [tokenizer.encode(text) for text in texts]
    assert sizes == [4, 4, 2]
