"""Chat templates against transformers, where it is installed (`make parity`): small ones of our own in the manner of Llama 3, Qwen2.5 and SmolLM2."""

from __future__ import annotations

import datetime
import json
import pathlib

import pytest

from lgrpo.data.chat import ChatTemplate
from lgrpo.data.chat_worker import DATE

utils = pytest.importorskip("transformers.utils.chat_template_utils")
SMOKE = pathlib.Path(__file__).parents[2] / "experiments" / "smoke"
TOKENS = (("bos_token", "<s>"), ("eos_token", "</s>"))
USERS = ["Why?", "  a <b> & 'c' \"d\"\n\n", "{{ not.a.template }}", "é🦆\u2028", "<|im_end|>"]

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("one tool call at a time") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not message.content.startswith('<tool>') %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = """{% for message in messages %}
    {% if message.role == 'assistant' %}
        {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {% else %}
{{ message.role }}: {{ message | tojson(sort_keys=True, separators=(',', ': ')) }}
        {% generation %}
  {{ message.content }}
        {% endgeneration %}
    {% endif %}
    {% if loop.first %}{% continue %}{% endif %}
{% endfor %}
{{ documents is none }} {{ tools }} {{ bos_token }} {{ nothing }} {{ dict(a=1) }}
"""


class _Then(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return DATE


def theirs(template, user, monkeypatch):
    monkeypatch.setattr(utils, "datetime", _Then)
    messages = [[{"role": "user", "content": user}]]
    out, _ = utils.render_jinja_template(messages, chat_template=template, add_generation_prompt=True, **dict(TOKENS))
    return out[0]


def smoke(family):
    return json.loads((SMOKE / family / "tokenizer_config.json").read_text())["chat_template"]


@pytest.mark.parametrize("template", [LLAMA3, QWEN, SMOLLM, MARKED, smoke("llama"), smoke("qwen2")])
def test_texts_are_those_of_transformers(template, monkeypatch):
    ours = ChatTemplate(template, TOKENS, "t").render(USERS)
    assert ours == [theirs(template, user, monkeypatch) for user in USERS]
