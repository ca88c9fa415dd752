"""Chat templates: golden texts and tokens on the small tokenizers of the smoke experiments, the sandbox, and what is refused."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.smoke import make_assets
from lgrpo.config import DataConfig, ExperimentConfig
from lgrpo.data import chat, prompts
from lgrpo.data.chat import load_chat_template
from lgrpo.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
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
        ("{% generation %}", "is broken"),
        ("{{ 'a' * 10**10 }}", "memory"),
        ("{% set a = 'a' %}{{ messages[0].content * 10**10 }}", "memory"),
        ("{{ '%2000000000d' % 1 }}", "memory"),
        ("{{ '%2000000000d' % messages | length }}", "memory"),
        ("{{ '{:1000000000}'.format(1) }}", "memory|more than"),
        ("{{ messages[0].content | indent(1000000000) | center(1000000000) }}", "memory|more than"),
        ("{% for i in range(99999) %}0123456789ab{% endfor %}", "writes more than 100"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end|cannot be rendered"),
        ("{{ raise_exception('a\nb') }}", r"\(a b\)"),
        ("\ud83d", "half a character"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered.*unsafe"),
        ("{% set _ = messages.append(1) %}", "cannot be rendered"),
        ("{% include '/etc/passwd' %}", "cannot be rendered"),
    ],
)
def test_templates_run_in_a_sandbox_and_fail_in_one_line(tmp_path, template, says):
    with pytest.raises(UserError, match=says) as error:
        rendered(write(tmp_path / "a", chat_template=template))
    assert "\n" not in str(error.value) and str(tmp_path / "a") in str(error.value)


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [ENDLESS, "{{ (10**8)**(10**8) }}"])  # the second one while it is compiled
def test_time_is_bounded(tmp_path, monkeypatch, template):
    monkeypatch.setattr(chat, "SECONDS", 1)
    with pytest.raises(UserError, match="it takes more than 1 seconds"):
        rendered(write(tmp_path / "a", chat_template=template))
    monkeypatch.setattr(chat, "SECONDS", 5)
    monkeypatch.setattr(chat, "PATIENCE", 0.3)
    with pytest.raises(UserError, match=r"it takes more than 0\.3 seconds"):
        rendered(write(tmp_path / "b", chat_template=template))


def test_a_signal_is_heard_while_a_template_renders(tmp_path):
    """SIGTERM ends the process at once, whatever the template does; and a handler runs while one waits."""
    cfg = write(tmp_path / "a", chat_template=ENDLESS)
    code = (
        "import signal, sys, threading\n"
        "from lgrpo.config import DataConfig\n"
        "from lgrpo.data import prompts\n"
        f"chat = prompts.load_tokenizer(DataConfig(tokenizer={cfg.tokenizer!r}, template='chat')).chat\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('heard', flush=True))\n"
        "print('ready', flush=True)\n"
        "chat.render(['x'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "heard\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(3) == -signal.SIGTERM


def test_a_file_that_is_not_utf_8(tmp_path):
    cfg = write(tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"chat_template\.jinja: not UTF-8 at byte 3"):
        prompts.load_tokenizer(cfg)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% if tools is not none %}TOOLS{% endif %}{% if documents is not none %}DOCS{% endif %}<{{ messages[0].role }}>", "<user>"),
        ("{% generation %}{{ messages[0].role }}{% set a = 1 %}{% endgeneration %}{{ a is defined }}", "userFalse"),
        ("{{ {'b': 1, 'a': '<é'} | tojson(sort_keys=True, separators=(',', ':')) }}", '{"a":"<é","b":1}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1) }}", '{\n "b": 1,\n "a": 2\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ eos_token }}{{ bos_token }}", "<e>"),
        ("{%- if strftime_now is defined %}\n  {{- 'yes' }}\n{%- endif %}", "yes"),
    ],
)
def test_what_templates_may_ask_for(tmp_path, template, text):
    write(tmp_path / "a", chat_template=template, eos_token="<e>")
    assert load_chat_template(tmp_path / "a").render(["hi", "ho"]) == [text, text]


def test_many_prompts_at_once(tmp_path):
    write(tmp_path / "a", chat_template="{{ messages[0].content | trim }}:")
    users = [f" {i}\u2028é🦆" * (i % 7 + 1) for i in range(3 * chat.BATCH + 1)]
    assert load_chat_template(tmp_path / "a").render(users) == [f"{user.strip()}:" for user in users]
    long = "x" * 5_000_000
    assert load_chat_template(tmp_path / "a").render([long]) == [f"{long}:"]


def test_what_transformers_offers_is_there(tmp_path):
    template = "{% for m in messages %}\n    {% if loop.first %}{{ m | tojson }}{% continue %}{% endif %}\n{% endfor %}"
    assert rendered(write(tmp_path / "a", chat_template=template), "a<b").lstrip().startswith('{"role": "user", "content": "Please')
    assert "a<b" in load_chat_template(tmp_path / "a").render(["a<b"])[0]
