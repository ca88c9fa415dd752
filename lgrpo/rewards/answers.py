"""Where in a completion the answer stands. Completions are untrusted: linear time, and only a bounded part is looked at."""

from __future__ import annotations

import re

from lgrpo.rewards.notation import words
from lgrpo.rewards.units import DENYING, KNOWN

MAX_TEXT = 16_384
"""Characters of a completion that are searched, counted from its end; what stands before cannot hold the answer."""

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_BRACES = re.compile(_BOX.pattern + r"|\\?[{}]")
# What may stand between two boxes that are one answer: `\boxed{3}$ and $x = \boxed{5}`.
_BETWEEN = re.compile(
    r"[\s$.\\()]*(?:,|;|\band\b|\bor\b|\\text\s*\{\s*(?:and|or)\s*\})+[\s$,\\()]*"
    r"(?:(?:and|or)\b)?[\s$\\()]*(?:\\?[A-Za-z]+(?:_\{?\w\}?)?\s*=)?[\s$]*"
)
_SAID = re.compile(r"\b(?:answers?|result|solution)(?:\s+(?:is|are|was|equals|would be|must be)\b\s*:?|\s*[:=])[\s*_`]*", re.IGNORECASE)
_SENTENCE_ENDS = re.compile(r"[.!?](?=\s+[A-Z]|\s*$)|\n")
_SENTENCE_END = re.compile(r"[.;!?:]$|^(?![\d,]*\d,?$).*,$")
# Words of a sentence that belong to the expression beside them, words before it that change or deny it, and words behind it that do.
_JOINERS = words("or and to of out by times plus minus over &")
_BEFORE = re.compile(
    rf"n['’]t\b|\b(?:{'|'.join(DENYING)}|over|under|above|below|nearly|almost|remainder|divided|multiplied|times|power|instead)\b"
    r"|\b(?:sqrt|log|ln|sin|cos|tan)(?![a-z])|\b(?:\d+|one) in\b|\b(?:root|square|cube|percent|third|quarter|out) of\b|\band$",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    r"(?:hundred|thousand|million|billion|trillion|dozen)s?\b|times (?:as|more|larger|greater|bigger|the)\b|\w+ than\b|"
    r"(?:half|squared|cubed|factorial|plus|minus|divided|to the|out of)\b",
    re.IGNORECASE,
)
# Left of the last `=`: arithmetic, perhaps behind a name, which need not be repeated in the answer.
_SUM = re.compile(r"\s*(?:[A-Za-z] ?=)?(?:[^A-Za-z\\√^|]|[xX](?= ?[\d$.(])|(?<=\d)/[a-z]{3,})*")
_ANCHOR = re.compile(r"[\d¹²³⁰-₉]|\\[A-Za-z]|\$[^$]|[√π∞]")
_PART = re.compile(r"[^A-Za-z]*[-+*/=^<>(){}\[\]%|×·÷−$≤≥≠≈±∈][^A-Za-z]*|[*`\"'.,;:!?$()]*[b-zB-HJ-Z][*`\"'.,;:!?$()]*")
_CLAUSE = re.compile(r"[,;.!?](?:\s|$)|\bequals\b")
_MAX_TOKENS = 24


def answer_text(completion: str) -> str | None:
    """The answer inside the text after thinking, as written, or None when there is none.

    In this order: the content of the last balanced \\boxed{...} or \\fbox{...}, or of several that are joined by commas, `and`, `or`; the rest
    of the line after the last ####; the first whole expression after the last `answer is` or `answer:`; the last whole expression. An empty
    box or line is no answer. Reads the last MAX_TEXT characters, in linear time.
    """
    text = completion.rstrip()[-MAX_TEXT:]
    marked = joined_boxes(text) if "box" in text else None
    if marked is None:
        marked = hash_line(text)
    if marked is not None:
        return marked.strip() or None
    if said := list(_SAID.finditer(text)):
        rest = _SENTENCE_ENDS.split(text[said[-1].end() :], maxsplit=1)[0]
        if (found := _expression(rest, first=True)) is not None:
            return found or None
    return _expression(text, first=False) or None


def hash_line(text: str) -> str | None:
    """The rest of the line after the last `####` that has one, or None without `####`."""
    before, mark, after = text.rpartition("####")
    if not mark:
        return None
    line, earlier = after.partition("\n")[0], before.rpartition("\n")[2].rpartition("####")
    return line.strip("# \t\r") or (earlier[2].strip("# \t\r") if earlier[1] else "")


def boxes(text: str) -> list[tuple[int, int, int]]:
    """(where it begins, start and end of its content) of balanced boxes, in the order in which they open; one pass, open braces on a stack."""
    found: list[tuple[int, int, int]] = []
    stack: list[re.Match[str]] = []
    for match in _BRACES.finditer(text):
        if match[0][-1] == "{" and match[0] != "\\{":
            stack.append(match)
        elif match[0] == "}" and stack and (opened := stack.pop())[0] != "{":
            found.append((opened.start(), opened.end(), match.start()))
    return sorted(found)


def joined_boxes(text: str) -> str | None:
    """Content of the box that opens last, after those of boxes that are joined to it."""
    parts: list[str] = []
    begin = 0
    for first, start, end in reversed(boxes(text)):
        if parts and (begin < end or begin - end > 64 or not _BETWEEN.fullmatch(text[end + 1 : begin])):
            break
        begin, part = first, text[start:end].strip()
        if parts[:1] != [part]:
            parts.insert(0, part)
    return ", ".join(parts) if parts else None


def _expression(text: str, first: bool) -> str | None:
    """The first or last run of words that are mathematics, in whole: without the sentence around it, and without the sum that it is. None: there
    is none; "": the words around it change it."""
    lines = [line.split() for line in text.split("\n")]
    tokens = next((line for line in (lines if first else reversed(lines)) if any(_kind(token) == "anchor" for token in line)), [])
    order = range(len(tokens)) if first else range(len(tokens) - 1, -1, -1)
    at = next((n for n in order if _kind(tokens[n]) == "anchor"), None)
    if at is None:
        return None
    before, after = tokens[max(0, at - _MAX_TOKENS) : at][::-1], tokens[at + 1 : at + 1 + _MAX_TOKENS]
    start, stop = at - _reach(before, before), at + _reach(after, tokens[at:])
    run = " ".join(tokens[start : stop + 1]).rstrip(".,;:!*`")
    left, sign, right = run.rpartition("=")
    summed = sign and not _JOINERS & set(tokens[start : stop + 1]) and _SUM.fullmatch(left) and re.search(r"\d|\\", right)
    if (
        re.search(r"[(^_\\]", "".join(tokens[max(0, start - 1) : start]))
        if summed and not left
        else not summed and _changed(tokens, start, stop)
    ):
        return _expression(" ".join(tokens[stop + 1 :]), first=False) or "" if first else ""  # not 3 but 4
    run = (right if summed else run).strip("*` \"'")
    if run.endswith(")") and "(" not in run:  # of a list, or of nothing
        opened = next((n for n in range(start - 1, max(-1, start - 9), -1) if "(" in tokens[n]), None)
        return run[:-1] if opened is None else " ".join(tokens[opened : stop + 1])
    return run


def _changed(tokens: list[str], start: int, stop: int) -> bool:
    """Whether the words beside a run make something else of it: not 5, half of 10, 5 hundred, 3 kg and 200 g."""
    words_before = _CLAUSE.split(" ".join(tokens[max(0, start - 3) : start]))[-1].split()
    behind = "" if _SENTENCE_END.search(tokens[stop]) else " ".join(tokens[stop + 1 : stop + 3])
    unit = "".join(words_before[-1:]).lower()
    piece = (unit in KNOWN or unit.rstrip("s") in KNOWN or unit == "feet") and _kind("".join(words_before[-2:-1])) == "anchor"
    return bool(piece or _BEFORE.search(" ".join(words_before)) or _BEHIND.match(behind))


def _reach(tokens: list[str], bounds: list[str]) -> int:
    """How many of the tokens belong to the mathematics before them: they are mathematics, or joining words with mathematics behind. A bound
    that ends a sentence ends it."""
    reach = 0
    for n, (token, bound) in enumerate(zip(tokens, bounds, strict=False), 1):
        if _SENTENCE_END.search(bound):
            break
        if _kind(token):
            reach = n
        elif token.lower() not in _JOINERS or not _kind("".join(tokens[n : n + 1])):
            break
    return reach


def _kind(token: str) -> str:
    """`anchor`: it has a digit, a command or a dollar; `part`: it may belong to one; empty: a word."""
    if _ANCHOR.search(token):
        return "" if re.match(r"[*`\"'.,;:!?$()]*[A-Za-z]{3,}", token) else "anchor"
    return "part" if _PART.fullmatch(token) else ""
