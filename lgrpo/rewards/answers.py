"""Where in a completion the answer stands. Completions are untrusted: linear time, and only a bounded part is looked at."""

from __future__ import annotations

import re

from lgrpo.rewards.units import KNOWN

MAX_TEXT = 16_384
"""Characters of a completion that are searched, counted from its end; what stands before cannot hold the answer."""

_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\[{}]|[{}]")
# What may stand between two boxes that are one answer: `\boxed{3}$ and $x = \boxed{5}`.
_BETWEEN = re.compile(
    r"[\s$.\\()]*(?:,|;|\band\b|\bor\b|\\text\s*\{\s*(?:and|or)\s*\})+[\s$,\\()]*"
    r"(?:(?:and|or)\b)?[\s$\\()]*(?:\\?[A-Za-z]+(?:_\{?\w\}?)?\s*=)?[\s$]*"
)
_SAID = re.compile(r"\b(?:answers?|result|solution)(?:\s+(?:is|are|was|equals|would be|must be)\b\s*:?|\s*[:=])[\s*_`]*", re.IGNORECASE)
_SENTENCE_ENDS = re.compile(r"[.!?](?=\s+[A-Z]|\s*$)|\n")
# Words of a sentence that belong to the expression beside them.
_JOINING = "or and to of out by times plus minus over"
_JOINERS = frozenset(_JOINING.split())
_CHANGING = "hundred thousand million billion trillion dozen dozens half percent squared cubed hundreds thousands millions billions"
_AFTER = frozenset(_CHANGING.split())
_ASSIGNMENTS = re.compile(r"(?:[A-Za-z] ?= ?[^\s,]+(?:, ?|$)){2,}")
_MAX_TOKENS = 24


def answer_text(completion: str) -> str | None:
    """The answer inside the text after thinking, as written, or None when there is none.

    In this order: the content of the last balanced \\boxed{...} or \\fbox{...}, or of several that are joined by commas, `and`, `or`; the rest
    of the line after the last ####; the first whole expression after the last `answer is` or `answer:`; the last whole expression. An empty
    box or line is no answer. Reads the last MAX_TEXT characters, in linear time.
    """
    text = completion.rstrip()[-MAX_TEXT:]
    boxed = joined_boxes(text)
    if boxed is not None:
        return boxed.strip() or None
    line = hash_line(text)
    if line is not None:
        return line or None
    if said := list(_SAID.finditer(text)):
        rest = text[said[-1].end() :]
        end = _SENTENCE_ENDS.search(rest)
        if (found := _expression(rest[: end.start()] if end else rest, first=True)) is not None:
            return found
    return _expression(text, first=False)


def hash_line(text: str) -> str | None:
    """The rest of the line after the last `####` that has one, or None without `####`."""
    at = text.rfind("####")
    if at < 0:
        return None
    line = text[at + 4 :].partition("\n")[0].strip(" \t#")
    if line:
        return line.strip()
    _, mark, before = text[text.rfind("\n", 0, at) + 1 : at].rpartition("####")
    return before.strip(" \t#") if mark else ""


def boxes(text: str) -> list[tuple[int, int, int]]:
    """(where it begins, start and end of its content) of balanced boxes, in the order in which they open; one pass, open braces on a stack."""
    if "\\boxed" not in text and "\\fbox" not in text and "\\framebox" not in text:
        return []
    found: list[tuple[int, int, int]] = []
    stack: list[tuple[int, int]] = []  # of a box: where it and its content begin; -1 for an ordinary brace
    for match in _BRACES.finditer(text):
        piece = match.group()
        if piece in ("\\{", "\\}"):
            continue
        if piece == "}":
            begin, start = stack.pop() if stack else (-1, -1)
            if start >= 0:
                found.append((begin, start, match.start()))
        else:
            stack.append((match.start(), match.end()) if piece != "{" else (-1, -1))
    return sorted(found)


def joined_boxes(text: str) -> str | None:
    """Content of the box that opens last, after those of boxes that are joined to it."""
    found = boxes(text)
    if not found:
        return None
    begin, start, end = found[-1]
    parts = [text[start:end].strip()]
    for before in reversed(found[:-1]):
        if begin < before[2] or begin - before[2] > 64 or not _BETWEEN.fullmatch(text[before[2] + 1 : begin]):
            break
        begin = before[0]
        if parts[0] != (part := text[before[1] : before[2]].strip()):
            parts.insert(0, part)
    return ", ".join(parts) if len(parts) > 1 else parts[0]


def _expression(text: str, first: bool) -> str | None:
    """The first or last run of words that are mathematics, in whole: without the sentence around it, and without what it is said to equal."""
    tokens = text.split()
    order = range(len(tokens)) if first else range(len(tokens) - 1, -1, -1)
    at = next((n for n in order if _kind(tokens[n]) == "anchor"), None)
    if at is None:
        return None
    start = stop = at
    while start > 0 and at - start < _MAX_TOKENS and not _ends_sentence(tokens[start - 1]) and _belongs(tokens, start - 1, -1):
        start -= 1
    while stop + 1 < len(tokens) and stop - at < _MAX_TOKENS and not _ends_sentence(tokens[stop]) and _belongs(tokens, stop + 1, 1):
        stop += 1
    first_part = _composite(tokens, start, stop)
    if first_part is not None:
        return " ".join(tokens[first_part : stop + 2]).rstrip(".,;:!?")
    while start < at and not _kind(tokens[start]):
        start += 1
    while stop > at and not _kind(tokens[stop]):
        stop -= 1
    if stop + 1 < len(tokens) and not _ends_sentence(tokens[stop]) and tokens[stop + 1].strip(".,;!?").lower() in _AFTER:
        stop += 1
    run = " ".join(tokens[start : stop + 1]).rstrip(".,;:!?*`")
    joined = any(token in _JOINERS for token in tokens[start : stop + 1]) or _ASSIGNMENTS.fullmatch(run)
    before, _, last = run.rpartition("=")
    run = run if joined or (re.search(r"\d", before) and not re.search(r"\d|\\", last)) else last  # but the whole of 12 = x
    run = run.strip("*` \"'")
    if run.endswith(")") and "(" not in run:  # of a list, or of nothing
        opened = next((n for n in range(start - 1, max(-1, start - 9), -1) if "(" in tokens[n]), None)
        return run[:-1] if opened is None else " ".join(tokens[opened : stop + 1])
    return run or None


def _composite(tokens: list[str], start: int, stop: int) -> int | None:
    """Where `4 hours and 30 minutes` begins, of which the last number is a piece; None where there is no such thing."""
    at = start - 2 if start > 0 and tokens[start - 1] == "and" else start - 1
    units = [tokens[n].strip(".,;").lower() for n in (at, stop + 1) if 0 < n < len(tokens)]
    known = len(units) == 2 and all(unit in KNOWN or unit.rstrip("s") in KNOWN for unit in units)
    return at - 1 if known and _kind(tokens[at - 1]) == "anchor" else None


def _kind(token: str) -> str:
    """`anchor`: it has a digit, a command or a dollar; `part`: it may belong to one; empty: a word."""
    bare = token.strip("*`\"'.,;:!?$()")
    if any(c.isdigit() for c in token) or re.search(r"\\[A-Za-z]|\$[^$]|[√π∞]", token):
        return "anchor" if not re.match(r"[A-Za-z]{3,}", bare) else ""
    signs = not re.search("[A-Za-z]", token) and re.search(r"[-+*/=^<>(){}\[\]%|×·÷−$]", token)
    if signs or re.fullmatch("[b-zB-HJ-Z]", bare):
        return "part"
    return ""


def _ends_sentence(token: str) -> bool:
    return token[-1] in ".;!?:" or (token[-1] == "," and not token[:-1].replace(",", "").isdigit())


def _belongs(tokens: list[str], at: int, step: int) -> bool:
    """Whether a token carries the run on: it is mathematics, or a joining word with mathematics behind it."""
    if _kind(tokens[at]):
        return True
    beyond = at + step
    return tokens[at].lower() in _JOINERS and 0 <= beyond < len(tokens) and bool(_kind(tokens[beyond]))
