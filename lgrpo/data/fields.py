"""What a record's fields may be, and lines of JSON read strictly: a value that would be trained on by mistake is refused, with a reason."""

from __future__ import annotations

import json
import math
from typing import Any


def is_text(value: str) -> bool:
    """Whether a string can be written: JSON may escape half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return found


def parse_json(text: str) -> Any:
    """As json.loads. Errors: ValueError, in one line, also for keys that are there twice, integers of thousands of digits and too deep nesting."""
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise ValueError("an integer has thousands of digits; write it as text") from None
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def text_of(value: Any, name: str) -> str:
    """A field that must be text. Errors: ValueError with what it is instead."""
    if value is None:
        raise ValueError(f"no `{name}`")
    if not isinstance(value, str):
        raise ValueError(f"`{name}` is a {type(value).__name__}")
    if not is_text(value):
        raise ValueError(f"`{name}` holds half a character (a lone surrogate)")
    return value


def answer_of(value: Any, name: str = "answer") -> str:
    """A gold answer, text or a finite number, as text. Errors: ValueError with what it is instead."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text_of(value, name)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{name}` is {value}, no number")
    return str(value)
