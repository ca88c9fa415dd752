"""Texts of runs, made fit to be shown."""

from __future__ import annotations

import unicodedata


def visible(text: str) -> str:
    """Text without characters that would steer a terminal or hide in a page; blanks at its ends are shown."""
    out = "".join(f"\\x{ord(c):02x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t" else c for c in text)
    out = out.replace("\n", "\\n").replace("\t", "\\t")
    core = out.strip(" ")
    return out if not core else "␣" * (len(out) - len(out.lstrip(" "))) + core + "␣" * (len(out) - len(out.rstrip(" ")))


def visible_lines(text: str) -> str:
    """As `visible`, with the line breaks of the text."""
    return "\n".join(visible(line) for line in text.split("\n"))
