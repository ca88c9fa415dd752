"""Writes what the *_smoke experiments and the tests read: two small tokenizers with chat templates, and word problems as JSON lines.

The tokenizers are byte-level BPE, as those of Llama 3 and Qwen2.5, spell `</think>` in several tokens as they do, and carry templates of the
same form. Run: python -m experiments.smoke.make_assets
"""

from __future__ import annotations

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lgrpo.data import prompts, word_problems

HERE = pathlib.Path(__file__).parent
ROWS = {"train": 256, "test": 64}
VOCAB = 448

LLAMA = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n<|eot_id|>" }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" + message["content"] | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
QWEN2 = """\
{%- if messages[0]["role"] == "system" %}
    {{- "<|im_start|>system\\n" + messages[0]["content"] + "<|im_end|>\\n" }}
{%- else %}
    {{- "<|im_start|>system\\nPlease reason step by step.<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message["role"] != "system" %}
        {{- "<|im_start|>" + message["role"] + "\\n" + message["content"] + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""
FAMILIES = {
    "llama": {
        "special": ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "config": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": LLAMA},
    },
    "qwen2": {
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "config": {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": QWEN2},
    },
}


def build(family: str) -> tokenizers.Tokenizer:
    """The tokenizer, in memory. `think` and `</` are entries, `</think>` is not."""
    texts = [word_problems.generate("easy", "train", i) for i in range(2000)]
    corpus = [f"{t['problem']}\n{prompts.INSTRUCTION}\n\\boxed{{{t['answer']}}}" for t in texts]
    corpus += ["system", "user", "assistant", "think", "</"] * 20_000  # often enough to become entries
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, show_progress=False, initial_alphabet=alphabet)
    inner.train_from_iterator(corpus, trainer)
    inner.add_special_tokens(FAMILIES[family]["special"])
    return inner


def main(out: pathlib.Path = HERE) -> None:
    """Writes all files."""
    for family, parts in FAMILIES.items():
        folder = out / family
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(json.loads(build(family).to_str()), ensure_ascii=False) + "\n", encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **parts["config"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (out / "data").mkdir(exist_ok=True)
    for split, rows in ROWS.items():
        lines = [json.dumps(word_problems.generate("easy", split, i)) + "\n" for i in range(rows)]
        (out / "data" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
