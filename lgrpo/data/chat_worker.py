"""The process in which a checkpoint's chat template is compiled and rendered. Started by lgrpo.data.chat; nothing else imports it.

A template is a program that came with a download: Jinja's sandbox keeps it from files and from Python, and this process from time and memory
(also while it is compiled, when constants are folded). One line of JSON in, one out: first {source, tokens}, then lists of user messages; replies
are {"texts": [...]} or {"error": reason}. All of it is ASCII, so that half a character is no matter.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from typing import Any

from lgrpo.rewards.math_worker import limit_memory, limit_time

DATE = datetime.datetime(2024, 7, 26)
"""What strftime_now tells: the date that Llama 3's templates write where they are told none. A prompt must not depend on the day."""
LONGEST = 1_000_000
"""Characters that a template may add to a message."""


def _environment() -> Any:
    """Jinja as transformers sets it up: blocks trimmed, loop controls, the tag `generation`, tojson, raise_exception, strftime_now."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the model wrote, for training on it; it prints what is inside."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], inside).set_lineno(line)

        def _inside(self, caller: Any) -> str:
            return str(caller())

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        # Jinja's own would escape <, > and & for HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals |= {"raise_exception": raise_exception, "strftime_now": DATE.strftime}
    return env


def _render(template: Any, tokens: dict[str, str], message: str) -> str:
    """One conversation with this one message, up to the opening of the answer. Errors: ValueError when it gets too long."""
    limit, parts, size = LONGEST + 4 * len(message), [], 0
    messages = [{"role": "user", "content": message}]
    for part in template.generate(messages=messages, tools=None, documents=None, add_generation_prompt=True, **tokens):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise ValueError(f"it writes more than {limit} characters")
    return "".join(parts)


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    if isinstance(error, RecursionError):
        return "it calls itself without end"
    return " ".join(str(error).split())[:300] or type(error).__name__


def main() -> None:
    """Answers lines until stdin ends. Arguments: the memory limit in MiB, and the longest time in whole seconds for a line."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    template, tokens, env = None, {}, _environment()
    limit_memory(int(sys.argv[1]))
    for line in sys.stdin:
        limit_time(int(sys.argv[2]))
        try:
            request = json.loads(line)
            if template is None:
                template, tokens = env.from_string(request["source"]), request["tokens"]
                reply: dict[str, Any] = {"texts": []}
            else:
                reply = {"texts": [_render(template, tokens, message) for message in request]}
            text = json.dumps(reply)
        except Exception as error:  # a template may raise whatever Python can
            text = json.dumps({"error": _reason(error)})
        print(text, file=replies, flush=True)


if __name__ == "__main__":
    main()
