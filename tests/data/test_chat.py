"""Chat templates: golden texts and tokens on the small tokenizers of the smoke experiments, the sandbox, and what is refused."""

from __future__ import annotations

import json
import pathlib

import pytest

from experiments.smoke import make_assets
from lgrpo.config import DataConfig, ExperimentConfig
from lgrpo.data import prompts
from lgrpo.data.chat import load_chat_template
from lgrpo.errors import UserError

SMOKE = pathlib.Path(make_assets.__file__).parent
EOS = {"llama": "<|eot_id|>", "qwen2": "<|im_end|>"}
ASK = "Please reason step by step, and put your final answer within \\boxed{}.\nWhy?"
TEXTS = {
    "llama": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{ASK}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>"
    ),
    "qwen2": (
        f"<|im_start|>system\nPlease reason step by step.<|im_end|>\n<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n<think>"
    ),
}
# The first and last tokens, by vocabulary entry; between them lie the instruction and the problem.
HEADS = {
    "llama": ["<|begin_of_text|>", "<|start_header_id|>", "system", "<|end_header_id|>"],
    "qwen2": ["<|im_start|>", "system", "Ċ"],
}
TAILS = {
    "llama": ["<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "Ċ", "Ċ", "<", "think", ">"],
    "qwen2": ["<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ", "<", "think", ">"],
}


def data_config(family: str, **fields) -> DataConfig:
    return DataConfig(tokenizer=str(SMOKE / family), template="chat", eos=EOS[family], **fields)


def write(folder: pathlib.Path, **config) -> DataConfig:
    """A folder with the small Llama tokenizer and another tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes((SMOKE / "llama" / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return DataConfig(tokenizer=str(folder), template="chat", eos="<|eot_id|>")


def rendered(cfg: DataConfig, problem: str = "Why?") -> str:
    return prompts.render_prompt(problem, cfg.template, cfg.think_start, chat=prompts.load_tokenizer(cfg).chat)


def test_the_committed_assets_are_what_the_script_builds(tmp_path):
    make_assets.main(tmp_path)
    for file in tmp_path.rglob("*.json*"):
        assert file.read_text() == (SMOKE / file.relative_to(tmp_path)).read_text(), file


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_golden_text_and_tokens(family):
    cfg = data_config(family)
    tokenizer = prompts.load_tokenizer(cfg)
    text = rendered(cfg)
    assert text == TEXTS[family]
    pieces = [tokenizer.token_of(i) for i in tokenizer.encode(text)]
    assert pieces[: len(HEADS[family])] == HEADS[family] and pieces[-len(TAILS[family]) :] == TAILS[family]
    assert tokenizer.decode(tokenizer.encode(text)) == text  # special tokens are one id each, and nothing is added
    assert pieces.count("<|begin_of_text|>") == (family == "llama")


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_think_tokens_are_resolved_and_described(family):
    cfg = data_config(family)
    tokenizer = prompts.load_tokenizer(cfg)
    resolved = prompts.resolve(ExperimentConfig(data=cfg), tokenizer)
    assert tokenizer.token_of(resolved.data.think_end_id) == "</"
    text = prompts.describe_think_tokens(resolved, tokenizer)
    assert f"think_end '</think>': </|{resolved.data.think_end_id} think|" in text and f"eos '{EOS[family]}'" in text
    assert f"thinking ends with its first token, '</' = {resolved.data.think_end_id}" in text
    wrong = data_config(family, think_end_id=7)
    with pytest.raises(UserError, match=r"data\.think_end_id: 7, but the tokenizer writes '</think>' with"):
        prompts.resolve(ExperimentConfig(data=wrong), tokenizer)


def test_an_opened_thinking_is_not_opened_twice(tmp_path):
    body = "{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}"
    assert rendered(write(tmp_path / "a", chat_template=body)).endswith("Why?<think>\n")
    plain = "{{ messages[0].content }}:"
    assert rendered(write(tmp_path / "b", chat_template=plain)).endswith("Why?:<think>")


def test_where_templates_are_found(tmp_path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]
    cfg = write(tmp_path / "a", chat_template=named, bos_token={"content": "<|begin_of_text|>"})
    assert rendered(cfg).startswith("<|begin_of_text|>Please")
    (tmp_path / "a" / "chat_template.jinja").write_text("file: {{ messages[0].content }}")
    assert rendered(cfg).startswith("file: Please")
    with pytest.raises(UserError, match=r"neither chat_template\.jinja nor a chat_template"):
        prompts.load_tokenizer(write(tmp_path / "b"))
    assert prompts.load_tokenizer(DataConfig(tokenizer=str(tmp_path / "b"))).chat is None  # nobody asks for it
    with pytest.raises(UserError, match="without its chat template"):
        prompts.render_prompt("x", "chat")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% if %}", "is broken"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content.nothing.more }}", "cannot be rendered"),
        ("{{ strftime_now('%d') }}", "strftime_now"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered.*unsafe"),
        ("{% set _ = messages.append(1) %}", "cannot be rendered"),
        ("{% include '/etc/passwd' %}", "cannot be rendered"),
    ],
)
def test_templates_run_in_a_sandbox_and_fail_in_one_line(tmp_path, template, says):
    with pytest.raises(UserError, match=says) as error:
        rendered(write(tmp_path / "a", chat_template=template))
    assert "\n" not in str(error.value)


def test_what_transformers_offers_is_there(tmp_path):
    template = "{% for m in messages %}\n    {% if loop.first %}{{ m | tojson }}{% continue %}{% endif %}\n{% endfor %}"
    assert rendered(write(tmp_path / "a", chat_template=template), "a<b").lstrip().startswith('{"role": "user", "content": "Please')
    assert "a<b" in load_chat_template(tmp_path / "a").render("a<b")
