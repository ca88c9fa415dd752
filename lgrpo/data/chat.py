"""Chat templates: the Jinja text that a checkpoint's tokenizer carries, rendered as transformers renders it, in a sandbox and in a process of its own.

`strftime_now` tells a constant date, that of Llama 3's templates where they know none, so that a prompt does not depend on the day. Code shipped with
a checkpoint is never run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import lgrpo
from lgrpo.data import chat_worker
from lgrpo.errors import UserError

MEMORY_MB = 512
"""A template's process may grow by this much."""
SECONDS = 5
"""Processor time that a template has to be compiled, and again for each batch of prompts."""
PATIENCE = 60.0
"""The same in time on the wall, where the machine is busy; a start counts in."""
BATCH = 64
"""Prompts that are rendered at once."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens that it may name."""

    source: str
    tokens: tuple[tuple[str, str], ...]
    """(name, text): bos_token, eos_token and others of tokenizer_config.json."""
    name: str
    """File that it came from, for messages."""

    def render(self, users: Sequence[str]) -> list[str]:
        """For each text the conversation with this one user message, up to the opening of the answer.

        Errors: UserError with Jinja's reason, or naming the limit of time, memory or length that the template broke.
        """
        texts: list[str] = []
        with _Process(self) as process:
            for start in range(0, len(users), BATCH):
                texts += process.ask(list(users[start : start + BATCH]), "cannot be rendered")
        if odd := next((text for text in texts if not _is_text(text)), None):
            raise UserError(f"{self.name}: the chat template writes half a character ({odd[:40]!r}); mend it or use another data.template")
        return texts


class _Process:
    """A worker with one template in it, for as long as the context lasts."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def __enter__(self) -> _Process:
        root = str(pathlib.Path(lgrpo.__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._worker = subprocess.Popen(
            [sys.executable, "-m", chat_worker.__name__, str(MEMORY_MB), str(SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        try:
            self.ask({"source": self._template.source, "tokens": dict(self._template.tokens)}, "is broken")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._worker.kill()
        self._worker.communicate()  # closes the pipes

    def ask(self, request: Any, what: str) -> list[str]:
        """The worker's texts for a request. what: goes wrong, for the message. Signals are handled meanwhile: nothing is computed here."""
        reply = b""
        try:
            self._worker.stdin.write(json.dumps(request).encode() + b"\n")
            self._worker.stdin.flush()
            reply = self._line()
        except OSError:  # it died while it read
            pass
        if not reply:
            raise self._error(what, self._why())
        answer = json.loads(reply)
        if "error" in answer:
            raise self._error(what, answer["error"])
        return answer["texts"]

    def _line(self) -> bytes:
        """One line of the worker's, b"" when it ends or takes too long."""
        parts, deadline = [], time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._worker.stdout, selectors.EVENT_READ)
            while not parts or not parts[-1].endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return b""
                parts.append(os.read(self._worker.stdout.fileno(), 1 << 20))
                if not parts[-1]:
                    return b""
        return b"".join(parts)

    def _why(self) -> str:
        """What ended the worker, or did not."""
        try:
            code = self._worker.wait(1.0)
        except subprocess.TimeoutExpired:
            return f"it takes more than {PATIENCE:g} seconds"
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"it takes more than {SECONDS} seconds"
        return f"its process ended with code {code}; see what `{sys.executable} -m {chat_worker.__name__} 512 5` says"

    def _error(self, what: str, why: str) -> UserError:
        return UserError(f"{self._template.name}: the chat template {what} ({why}); mend it or use another data.template")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


@functools.lru_cache(maxsize=16)
def _check(template: ChatTemplate) -> None:
    """Errors: UserError when it is no Jinja."""
    with _Process(template):
        pass


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
        try:
            return file.read_text(encoding="utf-8"), str(file)
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error}") from error
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
    source, name = found
    tokens = {}
    for key, value in _read(folder).items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    template = ChatTemplate(source, tuple(sorted(tokens.items())), name)
    _check(template)
    return template
