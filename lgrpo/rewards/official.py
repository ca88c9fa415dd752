"""The authors' string grader, for comparison: what the released code rewards, described in its own terms.

The content of the last \\boxed{...} and the gold answer are brought to one spelling by the MATH benchmark's `strip_string` rules, and must then be
the same string. Its known limits are kept: 1,000 is not 1000, 2/4 is not 1/2, 0.50 is not 0.5. Unlike the released code it sees the text after
thinking only (the surface of latent steps is no text), and unbalanced boxes are no answer instead of an exception.
"""

from __future__ import annotations

import re

MAX_OFFICIAL = 16_384
"""Longest box, in characters, that is compared; a longer one is wrong."""


def official_answer(text: str) -> str | None:
    """Content of the last \\boxed{...} (or `\\boxed x `, or \\fbox{...}), or None: none there, or not closed. One pass."""
    at = text.rfind("\\boxed")
    if (spaced := text.rfind("\\boxed ")) >= 0 and spaced == at:
        return text[at + len("\\boxed ") :].split("$")[0]
    if at < 0 and (at := text.rfind("\\fbox")) < 0:
        return None
    start = text.find("{", at)
    if start < 0:
        return None
    depth = 0
    for match in re.compile("[{}]").finditer(text, start):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return text[start + 1 : match.start()]
    return None


def official_equal(found: str, gold: str) -> bool:
    """Equality of strings after strip_string."""
    if max(len(found), len(gold)) > MAX_OFFICIAL:
        return False
    return strip_string(found) == strip_string(gold)


def strip_string(text: str) -> str:
    """The spelling in which answers are compared. Linear but for a few replacements of bounded text."""
    for old, new in (
        *(("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", "")),
        *(("^{\\circ}", ""), ("^\\circ", ""), ("\\$", "")),
    ):
        text = text.replace(old, new)
    head, unit, tail = text.partition("\\text{ ")  # a unit on the right; two of them were an error in the original
    text = head if unit and "\\text{ " not in tail else text
    for old, new in (("\\%", ""), ("%", ""), (" .", " 0."), ("{.", "{0.")):
        text = text.replace(old, new)
    if not text:
        return text
    text = "0" + text if text[0] == "." else text
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:  # `k = 5`
        text = right
    text = _fix_fracs(_fix_sqrt(text).replace(" ", ""))
    text = "\\frac{1}{2}" if text == "0.5" else text
    return _fix_slash(text)


def _fix_sqrt(text: str) -> str:
    """\\sqrt3 as \\sqrt{3}."""
    first, *rest = text.split("\\sqrt")
    return first + "".join("\\sqrt" + (part if part[:1] in ("{", "") else f"{{{part[0]}}}{part[1:]}") for part in rest)


def _fix_fracs(text: str) -> str:
    """\\frac12, \\frac1{72} as \\frac{1}{2}, \\frac{1}{72}; everything as it is where one of them is cut off."""
    first, *rest = text.split("\\frac")
    out = [first]
    for part in rest:
        if part[:1] == "{":
            out.append("\\frac" + part)
            continue
        if len(part) < 2:
            return text
        a, b, after = part[0], part[1], part[2:]
        out.append(f"\\frac{{{a}}}{b}{after}" if b == "{" else f"\\frac{{{a}}}{{{b}}}{after}")
    return "".join(out)


def _fix_slash(text: str) -> str:
    """a/b of two plain integers as \\frac{a}{b}."""
    match = re.fullmatch(r"(-?[0-9]{1,32})/(-?[0-9]{1,32})", text, re.ASCII)
    if match is None or match[0] != f"{int(match[1])}/{int(match[2])}":
        return text
    return f"\\frac{{{match[1]}}}{{{match[2]}}}"
