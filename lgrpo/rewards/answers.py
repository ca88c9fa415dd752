"""Finding the answer in a completion, and reading it as a number or as a normal form of text.

Completions are untrusted: every function here is linear in its input and looks at a bounded part of it. Nothing is ever evaluated.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import unicodedata
from fractions import Fraction

MAX_TEXT = 16_384
"""Characters of a completion that are searched, counted from its end; what stands before cannot hold the answer."""
MAX_ANSWER = 256
"""Characters of an answer that is interpreted; a longer one is compared as it is."""

_BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
_DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_UNSIGNED = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
# A minus after a digit, a letter or a bracket is a subtraction.
_LAST_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}])[-+])?(?:\\[dt]?frac\{{{_UNSIGNED}\}}\{{{_UNSIGNED}\}}|{_UNSIGNED}(?:[eE][-+]?[0-9]{{1,3}}(?![0-9]))?(?:\s*/\s*[0-9]+)?%?)",
    re.ASCII,
)
_SIGNED = rf"[-+]?\s*{_UNSIGNED}"
_NUMBER = re.compile(
    rf"({_SIGNED})(?:[eE]([-+]?[0-9]{{1,3}})|\s*(?:\*|\\times|\\cdot|×)\s*10\s*\^\s*\{{?([-+]?[0-9]{{1,3}})\}}?)?", re.ASCII
)
_SLASH = re.compile(rf"({_SIGNED})\s*/\s*({_SIGNED})", re.ASCII)
_FRAC = re.compile(rf"([-+]?)\s*\\[dt]?frac\s*(?:\{{\s*({_SIGNED})\s*\}}|([0-9]))\s*(?:\{{\s*({_SIGNED})\s*\}}|([0-9]))", re.ASCII)
# Mixed numbers: the fraction must be proper, else `1 11/2` could as well be a product or two numbers.
_MIXED = re.compile(
    r"([-+]?)\s*([0-9]+)(?:\s+([0-9]+)\s*/\s*([0-9]+)|\s*\\[dt]?frac\s*(?:\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}|([0-9])\s*([0-9])))",
    re.ASCII,
)
_LAYOUT = r"\\(?:left|right|displaystyle|boldsymbol)(?![a-zA-Z])|\\[!,;:]|\{,\}(?=[0-9]{3})|\\?[$%]|[€£¥]"
_NOISE = re.compile(_LAYOUT + r"|\^\s*\{?\s*\\circ\s*\}?|°")
_NOISE_IN_FUNCTIONS = re.compile(_LAYOUT)
_FUNCTION = re.compile(r"sin|cos|tan|cot|sec|csc")
"""cos 1 is not cos 1°: inside such formulas a degree sign is no unit."""
_WORDS = re.compile(r"[a-z]{2,}(?:[a-z\s.']*[a-z])?", re.ASCII | re.IGNORECASE)
"""What folds its case; in mathematics r and R are two things."""
# What makes the number behind it a piece of something: the minutes of 12:30, an exponent, a radicand.
_PIECE = re.compile(r"(?:[0-9]:|\^\s*[{(]?|_\s*\{?|\\sqrt\s*(?:\[[^\]]{0,9}\])?\s*\{?|√\s*[({]?)[-+]?$", re.ASCII)
_GROUPED = re.compile(r"[0-9][ \u00a0\u202f]$", re.ASCII)
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}")
_TAIL_TEXT = re.compile(rf"(?<=\S)\s*{_TEXT.pattern}\s*$")
_ASSIGNED = re.compile(r"[A-Za-z]\s*=\s*(?=[-+.\\0-9])")
_SPACES = re.compile(r"\s+")
_PLAIN = re.compile(r"-?[0-9]{1,18}", re.ASCII)
# A number and, after it, words without digits: `18 dollars`, `5 km/h`, `3 m^2`.
_WITH_UNIT = re.compile(r"(.*[0-9.}])(\s*)([A-Za-z][A-Za-z\s./-]*)(?:\^\s*\{?[23]\}?)?", re.ASCII | re.DOTALL)
_UNITS = "mm cm dm km kg mg lb lbs oz ft yd mi sec min hr hrs ml mL mph kmh kph kWh dollars cents deg"
_ATTACHED_UNITS = frozenset(_UNITS.split())
_LETTER_UNITS = frozenset("mgshlLWVAJNCF")
_VALUES = """or and to plus minus times over by mod modulo squared cubed choose pi sqrt not than point
    half halves third thirds quarter quarters hundred hundreds thousand thousands million millions billion billions trillion trillions
    dozen dozens score pair pairs mil bn zero one two three four five six seven eight nine ten eleven twelve
    twenty thirty forty fifty sixty seventy eighty ninety"""
_NO_UNITS = frozenset(_VALUES.split())
"""Words after a number that change its value, or say that there is more than one."""
_SCALES = frozenset(["hundred", "thousand", "million", "billion", "trillion", "dozen", "dozens"])
_MAX_UNIT_WORDS = 5
# Full-width forms by hand: NFKC would also turn 5² into 52 and 3½ into 31/2.
_SAME = str.maketrans(
    {chr(0xFF01 + i): chr(0x21 + i) for i in range(94)} | {"−": "-", "–": "-", "—": "-", "﹣": "-", "⁄": "/", "∕": "/", "÷": "/"}
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """An answer in normal form: `number` where it is one, else `text` to be compared as it is."""

    number: Fraction | None
    text: str
    percent: bool = False
    """A percent sign (or word) was dropped: 50% has the number 50."""
    latex: str = ""
    """The answer without invisible characters, spacing commands and currency, blanks kept: what a LaTeX parser is given. Empty when too long."""


def answer_text(completion: str) -> str | None:
    """The answer inside the text after thinking, as written, or None when there is none.

    The content of the last balanced \\boxed{...}; else the rest of the line after the last ####; else the last number. An empty box or
    an empty line after #### is no answer. Reads the last MAX_TEXT characters, in linear time.
    """
    text = completion.rstrip()[-MAX_TEXT:]
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip() or None
    at = text.rfind("####")
    if at >= 0:
        return text[at + 4 :].strip(" \t").partition("\n")[0].strip() or None
    text = text.translate(_SAME)
    last = collections.deque(_LAST_NUMBER.finditer(text), maxlen=1)
    return None if not last or _is_piece(text, last[0]) else last[0].group()


def _is_piece(text: str, number: re.Match[str]) -> bool:
    """Whether a number is a part of something larger, such as the 000 of `12 000` or the 2 of `2\\pi`: then there is no answer to read."""
    before, after = text[max(0, number.start() - 24) : number.start()], text[number.end() : number.end() + 24]
    grouped = _GROUPED.search(before) and re.fullmatch("[0-9]{3}", number.group().rstrip("."), re.ASCII)
    word = re.match(r"\s*([A-Za-z]+)", after)
    changed = word is not None and word[1].lower() in _SCALES
    return bool(_PIECE.search(before) or grouped or changed or re.match(r"\\(?:pi|sqrt|frac|cdot|times)|[\^√π]|[xX][0-9]", after))


def last_boxed(text: str) -> str | None:
    """Content of the balanced \\boxed{...} that opens last; one pass, with the open braces on a stack."""
    if "\\boxed" not in text:
        return None
    best: tuple[int, int] | None = None
    stack: list[int] = []  # start of the content of a box, or -1 for an ordinary brace
    for match in _BRACES.finditer(text):
        piece = match.group()
        if piece in ("\\{", "\\}"):
            continue
        if piece == "}":
            start = stack.pop() if stack else -1
            if start >= 0 and (best is None or start > best[0]):
                best = (start, match.start())
        else:
            stack.append(match.end() if piece != "{" else -1)
    return None if best is None else text[best[0] : best[1]]


def read_answer(answer: str) -> Reading:
    """Normal form of an answer.

    Numbers: integers with or without thousands commas, decimals, a/b, \\frac, mixed numbers (3 1/2), scientific notation with up to three
    exponent digits, a sign (also the Unicode minus), in front of or behind currency and %, which are dropped: 50% reads as 50. A unit may
    follow (18 dollars, 5 km/h, 3\\text{ cm}), but no word that changes the value or joins two (million, dozen, or). Blanks between digits are
    not joined. Invisible characters count as blanks. Anything else, and what is longer than MAX_ANSWER, is text without blanks, LaTeX
    spacing and a \\text behind it, in lower case.
    """
    if _PLAIN.fullmatch(answer):  # most answers: the rest of this function would say the same, ten times slower
        return Reading(Fraction(int(answer)), answer, latex=answer)
    if len(answer) > MAX_ANSWER:
        return Reading(None, answer.casefold())
    text = unicodedata.normalize("NFC", answer).translate(_SAME)
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c for c in text)
    percent = "%" in text
    latex = (_NOISE_IN_FUNCTIONS if _FUNCTION.search(text) else _NOISE).sub(_without_joining, text).strip()
    spaced = _bare(_TEXT.sub(r" \1 ", latex))
    number = _number(spaced)
    if number is None and (unit := _split_unit(spaced)):
        number = _number(unit[0])
        percent |= unit[1].split()[0] == "percent"
    text = _bare(_TEXT.sub(r"\1", latex if changes_value(latex) else _TAIL_TEXT.sub("", latex)))
    if number is None and text.startswith("(") and text.endswith(")"):
        inner = text[1:-1].strip()
        number = _number(inner) if "," not in inner else None  # (1,728) is a point
        text = inner if len(inner) == 1 else text  # the letter of a choice
    normal = _SPACES.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    return Reading(number, normal.casefold() if _WORDS.fullmatch(text) else normal, percent, latex)


def changes_value(latex: str) -> bool:
    """A \\text{...} in it holds a word that changes the value of a number beside it, or joins two: `2\\text{ million}`, `5\\text{ or }6`."""
    return any(word.lower() in _NO_UNITS for words in _TEXT.findall(latex) for word in re.findall("[A-Za-z]+", words))


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").strip()


def _split_unit(text: str) -> tuple[str, str] | None:
    """(number, unit) where a known or harmless unit follows a number, else None. At most MAX_ANSWER characters."""
    match = _WITH_UNIT.fullmatch(text)
    if not match:
        return None
    number, gap, unit = match[1], match[2], match[3].strip()
    words = re.findall(r"[A-Za-z]+", unit)
    if len(words) > _MAX_UNIT_WORDS or any(word.lower() in _NO_UNITS or (len(word) == 1 and word not in _LETTER_UNITS) for word in words):
        return None
    # Letters that touch the number are algebra (5x, 2pi) unless they are a unit that everybody writes so.
    return (number.strip(), unit) if gap or words[0] in _ATTACHED_UNITS else None


def _without_joining(match: re.Match[str]) -> str:
    """What noise becomes: nothing, but a blank between two digits, so that `5$5` is not 55; thousands separators are the exception."""
    if match.group() == "{,}":
        return ","
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    return " " if before.isdigit() and after.isdigit() and match.group() not in ("\\!", "\\,") else ""


def _number(text: str) -> Fraction | None:
    """Exact value, or None. Digits are bounded by MAX_ANSWER, the exponent by 999. `x = 5` has the value 5."""
    if assigned := _ASSIGNED.match(text):
        text = text[assigned.end() :]
    if match := _NUMBER.fullmatch(text):
        return _plain(match[1]) * Fraction(10) ** int(match[2] or match[3] or 0)
    if match := _SLASH.fullmatch(text):
        return _ratio(_plain(match[1]), _plain(match[2]))
    if match := _FRAC.fullmatch(text):
        value = _ratio(_plain(match[2] or match[3]), _plain(match[4] or match[5]))
        return -value if value is not None and match[1] == "-" else value
    if match := _MIXED.fullmatch(text):
        whole, above, below = int(match[2]), int(match[3] or match[5] or match[7]), int(match[4] or match[6] or match[8])
        if 0 < above < below:
            value = whole + Fraction(above, below)
            return -value if match[1] == "-" else value
    return None


def _plain(text: str) -> Fraction:
    """Value of a match of _SIGNED."""
    return Fraction(_SPACES.sub("", text).replace(",", "").rstrip("."))


def _ratio(a: Fraction, b: Fraction) -> Fraction | None:
    return a / b if b else None
