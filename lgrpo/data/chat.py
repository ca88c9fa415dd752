"""Chat templates: the Jinja text that a checkpoint's tokenizer carries, rendered as transformers renders it, in a sandbox.

`strftime_now` is not defined on purpose: templates that would write today's date (Llama 3) fall back to their constant one, so that a
prompt does not depend on the day. Code shipped with a checkpoint is never run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

from lgrpo.errors import UserError


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens that it may name."""

    source: str
    tokens: tuple[tuple[str, str], ...]
    """(name, text): bos_token, eos_token and others of tokenizer_config.json."""
    name: str
    """File that it came from, for messages."""

    def render(self, user: str) -> str:
        """Text of a conversation with this one user message, up to the opening of the answer. Errors: UserError with Jinja's reason."""
        import jinja2

        try:
            return _compiled(self.source).render(
                messages=[{"role": "user", "content": user}], add_generation_prompt=True, **dict(self.tokens)
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, KeyError, AttributeError) as error:
            raise UserError(f"{self.name}: the chat template cannot be rendered ({error}); mend it or use another data.template") from error


@functools.cache
def _compiled(source: str) -> Any:
    """The template, with what transformers offers to templates: blocks trimmed, loop controls, tojson, raise_exception."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)  # jinja's own would escape <, > and & for HTML

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env.from_string(source)


def _read(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error}); download or save it again") from error
    return raw if isinstance(raw, dict) else {}


def _source(folder: pathlib.Path) -> tuple[str, str] | None:
    """(template, file it came from). chat_template.jinja wins over tokenizer_config.json, as in transformers; of several, `default`."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), str(file)
    found, file = _read(folder).get("chat_template"), folder / "tokenizer_config.json"
    if isinstance(found, list):
        found = next((entry.get("template") for entry in found if isinstance(entry, dict) and entry.get("name") == "default"), None)
    return (found, str(file)) if isinstance(found, str) and found else None


def has_template(folder: pathlib.Path) -> bool:
    """Whether a tokenizer's folder carries a chat template."""
    return _source(folder) is not None


def load_chat_template(folder: pathlib.Path) -> ChatTemplate:
    """The chat template of a tokenizer's folder. Errors: UserError when there is none or it is no Jinja."""
    found = _source(folder)
    if found is None:
        raise UserError(
            f"data.template: chat, but {folder} has neither chat_template.jinja nor a chat_template in tokenizer_config.json; "
            "use plain or instruct, or give data.tokenizer a folder that has one"
        )
    import jinja2

    source, name = found
    try:
        _compiled(source)
    except jinja2.TemplateError as error:
        raise UserError(f"{name}: the chat template is broken ({error}); mend it or use another data.template") from error
    tokens = {}
    for key, value in _read(folder).items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return ChatTemplate(source, tuple(sorted(tokens.items())), name)
