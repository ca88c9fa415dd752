"""What an answer says: a number where it can be nothing else, a unit, a name, sides of an equation, else mathematics for the parser or words.

Completions are untrusted: what is interpreted is bounded, and nothing is ever evaluated.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from lgrpo.rewards.notation import CLOSE, OPEN, depths, spelled, words_as_blanks
from lgrpo.rewards.units import ATTACHED, DENYING, Unit, read_unit

MAX_ANSWER = 256
"""Characters of an answer that is interpreted; a longer one is compared as it is."""
APPROX = "\\approx "
"""In front of a side that is said to be a rounding of the value."""


class Reading(NamedTuple):
    """An answer taken apart. Equal answers need not have equal readings; equal `text` means equal answers.

    number: the value, where it is a plain number. text: value and sides in normal form, under which votes are counted. name: what the value is
    said to be, x in `x = 3`, Area in `\\text{Area} = 205`. sides: further sides of the equation in LaTeX, k^2 in `k^2 = 205`. latex: the value
    for a LaTeX parser, empty where only the text counts. equation: all of it with `=`, empty where the answer is none.
    """

    number: Fraction | None
    text: str
    unit: Unit = ()
    name: str = ""
    sides: tuple[str, ...] = ()
    latex: str = ""
    equation: str = ""


_PLAIN = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_SIMPLE = re.compile(r"(\\?\$)?(-?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]{1,18})(?:\.[0-9]{1,18})?)", re.ASCII)
_RATIO = re.compile(r"(-?)\\[dt]?frac\{([0-9]{1,18})\}\{(0*[1-9][0-9]{0,17})\}", re.ASCII)
_DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9]| [0-9])|[0-9]+)"
_UNSIGNED = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_SIGN = r"(?P<sign>[-+]?)\s*"
_ARGUMENT = r"\s*(?:\{\s*(?P<K>[-+]?\s*" + _UNSIGNED + r")\s*\}|(?P<K1>[0-9]))"
_FRAC = r"\\frac" + _ARGUMENT.replace("K", "a") + _ARGUMENT.replace("K", "b")
_DOLLAR = ("dollar",)
# The first that matches at the front is read; what follows must be a unit.
_FORMS = [
    # Mixed numbers: the fraction must be proper, else `1 11/2` could as well be a product or two numbers.
    re.compile(rf"{_SIGN}(?P<whole>[0-9]+)\s*(?: (?P<c>[0-9]+)\s*/\s*(?P<d>[0-9]+)(?![0-9.,])|{_FRAC})", re.ASCII),
    re.compile(_SIGN + _FRAC, re.ASCII),
    re.compile(rf"{_SIGN}(?P<start>[0-9]*\.[0-9]*)(?:\\(?:overline|bar|dot)\s*(?:\{{(?P<cycle>[0-9]+)\}}|(?P<digit>[0-9]))|\((?P<inner>[0-9]+)\))", re.ASCII),
    re.compile(rf"{_SIGN}(?P<start>[0-9]*\.[0-9]*?)(?:(?P<cycle>[0-9])(?P=cycle){{2,}}|(?P<digit>[0-9]{{2,6}})(?P=digit)+)\s*\\ldots", re.ASCII),
    re.compile(rf"{_SIGN}(?P<a>{_UNSIGNED})\s*/\s*(?P<b>[-+]?\s*{_UNSIGNED})(?![0-9,])", re.ASCII),
    re.compile(
        rf"{_SIGN}(?P<a>{_UNSIGNED})(?:[eE](?P<e>[-+]?[0-9]{{1,3}})(?![0-9])|"
        rf"\s*(?:\*|x|\\times|\\cdot)\s*10\s*\^\s*(?:\{{\s*(?P<e1>[-+]?[0-9]{{1,3}})\s*\}}|(?P<e2>[-+]?[0-9]{{1,3}}(?![0-9]))))?(?![0-9,])",
        re.ASCII,
    ),
]  # fmt: skip
_SIGNS_BEHIND = r"\\[%$]|[€£¥₹₩₽¢]|\^\\circ"
_UNIT = re.compile(rf"\s*(?:{_SIGNS_BEHIND}|[A-Za-z])(?:{_SIGNS_BEHIND}|[A-Za-z\s./-]|\^ ?\{{? ?[23] ?\}}?)*")
_UNIT_BEHIND_FORMULA = re.compile(
    rf"(?<=\S)\s*(?:{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|(?<=\s)([A-Za-z]{{2,}}(?:[\s./]+[A-Za-z]+)*))\s*(\^\s*\{{?\s*[23]\s*\}}?)?$"
)
_MONEY = re.compile(r"([-+]?\s*)((?:\\\$|[€£¥₹₩₽]|(?:US|CA|AU)?\\\$|(?:USD|EUR|GBP|INR|JPY|CAD|AUD|Rs)\b\.?)\s*)")
_MODULO = re.compile(r"\s*(?:\\pmod\s*(?:\{([^{}]*)\}|(\w))|\(?\s*\\?b?mod\b\s*\{?(\w+)\}?\s*\)?)$")
_BASED = re.compile(r"[({]?\s*([0-9][0-9A-Za-z]*)\s*[)}]?\s*(?:_|\(?\bbase\b)\s*\{?\s*([0-9]+|[a-z]+)\s*[)}]?")
_BASE_WORDS = "two three four five six seven eight nine ten eleven twelve"
_BASES = {word: n for n, word in enumerate(_BASE_WORDS.split(), 2)} | {"sixteen": 16}
_CHOICE = re.compile(r"\s*(\([A-E]\))\s*(?=\d|\\(?:frac|sqrt|\$))")

# Around the answer
_ENDS = re.compile(
    rf"[\s.,;:]+(?={CLOSE}$)|"
    r"^(?:[-=]+>|[\s#\"`*,;:=]|\\Rightarrow(?![a-z])|\\to(?![a-z])|\\approx(?![a-z]))+|(?:[\s.,;:#\"`*]|\\(?=$))+$"
)
_LABEL = re.compile(
    r"(?:[A-Za-z']+\s+){0,8}?(?:[A-Za-z']+\s*:|(?:is|are|was|be|equals|has|have|had|needs?|gets?|got|costs?|makes?|made|pays?|paid|earns?|spends?|takes?)\b:?|"
    r"(?:answer|ans|total|result)\s+(?=[-\d\\.])|"
    r"(?:about|around|roughly|approx(?:\.|imately)?|exactly|only|just)\s)\s*(?=\S)",
    re.IGNORECASE,
)
_BECAUSE = re.compile(r",?\s+(?:since|because)\b.*$", re.DOTALL)
_REASON = re.compile(r"\s*(?:since|because|as|see|from|where|i\.?e|namely|using|by|rounded|approx\w*|in)(?![\w(^=])", re.IGNORECASE)
_PLAIN_WORDS = re.compile(r"\s*[A-Za-z]{2,}(?:[\s-]+[A-Za-z]+)*\.?\s*")

# Names of values
_GREEK = "alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|(?:var)?phi|chi|psi|omega|ell|hbar"
_VARIABLE = rf"(?:\\(?i:{_GREEK})(?![a-zA-Z])|[A-Za-z])\s*'*(?:_\s*(?:\{{[^{{}}]*\}}|\w))?'*"
VARIABLE = re.compile(_VARIABLE)
_NAME = re.compile(
    rf"{_VARIABLE}(?:\s*(?:\^\s*\{{-1\}})?\s*\([^()]*\))?|\({_VARIABLE}(?:\s*,\s*{_VARIABLE})+\s*\)|[A-Z]{{2,4}}|[\[|]\s*(?:\\triangle\s*)?[A-Z]{{1,5}}\s*[\]|]|\\(?:det|dim|max|min)\s*\(?[A-Z]?\)?|"
    r"(?:m\s*)?\\(?:angle|triangle|overline|overrightarrow|vec|bar|hat|widehat|measuredangle)\s*\{?\s*[A-Za-z]{1,4}\s*\}?"
)
_NAMING_WORDS = re.compile(r"(?:\\(?:triangle|angle)(?![a-z])|[A-Za-z'\s])+")
_RELATION = re.compile(r"\\(?:leq|geq|neq|Rightarrow|to|subset|subseteq|mid)(?![a-z])|[<>]|!=")
_SEPARATOR = re.compile("[,;]")
_WRAPPED = re.compile(r"\{(.*)\}|\((.*)\)|\\\{(.*)\\\}|\[(.*)\]", re.DOTALL)
_EQUALS = re.compile(r"=|\\(?:approx|equiv)(?![a-z])|\\in(?![a-z])")
_JOINER = re.compile(rf"\s*,?\s*(?:{OPEN}\s*,?\s*(?:and|or)\s*{CLOSE}|(?<![A-Za-z])(?:and|or)(?![A-Za-z])(?![^{OPEN}{CLOSE}]*{CLOSE}))\s*")
# A number in front of brackets, which math-verify adds to a fraction within them.
_FACTOR = re.compile(r"(?<![\w.^_\\,])(\d+(?:\.\d+)?)\s*(?=\()")
# What folds its case; in mathematics r and R are two things.
_FOLDED = re.compile(r"[A-Z]?[a-z]{3,}|[A-Z][a-z]{2}|[A-Z]{4,}|(?i:no|yes|odd)|[A-Za-z']{2,}(?:[ .-]+[A-Za-z']+)+")


def read_answer(answer: str) -> Reading:
    """Takes an answer apart.

    Numbers: integers with or without thousands groups (1,000 and 1 000), decimals, repeating decimals, a/b, \\frac, mixed numbers, scientific
    notation with up to three exponent digits. In front and behind: a sign, currency, a unit (18 dollars, 5 km/h), but no word that changes the
    value or joins two (million, dozen, or). Labels, reasons in brackets, markup and invisible characters are dropped. What is longer than
    MAX_ANSWER is text.
    """
    if _PLAIN.fullmatch(answer):  # most answers: the rest of this function would say the same, ten times slower
        return Reading(Fraction(int(answer)), answer, latex=answer)
    if len(answer) > MAX_ANSWER:
        return Reading(None, answer.casefold())
    if simple := _SIMPLE.fullmatch(answer):
        number = Fraction(simple[2].replace(",", ""))
        return Reading(number, simple[2], _DOLLAR if simple[1] else (), latex=_number_latex(simple[2], number))
    if ratio := _RATIO.fullmatch(answer):
        number, text = Fraction(int(ratio[1] + ratio[2]), int(ratio[3])), f"{ratio[1]}\\frac{{{ratio[2]}}}{{{ratio[3]}}}"
        return Reading(number, text, latex=_number_latex(text, number))
    text = _undecorated(spelled(answer))
    choice = _CHOICE.match(words_as_blanks(text))
    name, sides, value = _taken_apart(_balanced(text[choice.end() :]) if choice else text)
    value, money = _without_money(_unwrapped(value))
    value, unit, number = _measured(value)
    sides = tuple(side for side in sides if number is None or _number(side) != number)
    latex = _latex(value) if number is None else _number_latex(value, number)
    if based := _BASED.fullmatch(words_as_blanks(value).strip()):
        value = f"{based[1]}_{_BASES.get(based[2], based[2])}"
    if based or "\\ldots" in value:
        latex = ""
    normal = "=".join(map(_normal, (*sides, value)))
    return Reading(
        number,
        normal,
        money + unit,
        choice[1] if choice else _normal(name),
        tuple(map(_latex, sides)),
        latex,
        _latex(text) if "=" in text else "",
    )


def _undecorated(text: str) -> str:
    """Without labels, reasons, punctuation and emphasis around it."""
    for _ in range(3):
        text = _ENDS.sub("", text)
        view = words_as_blanks(text)
        label = _LABEL.match(view, len(view) - len(view.lstrip()))
        if label and not DENYING & set(re.findall("[a-z]+", label[0].lower())):
            text = _balanced(text[label.end() :])
        elif reason := _BECAUSE.search(view):
            text = _balanced(text[: reason.start()])
        else:
            text = _without_comment(text, view.rstrip())
    return text


def _balanced(text: str) -> str:
    """Without marks of words that lost their partner by a cut."""
    return (text if text.count(OPEN) == text.count(CLOSE) else words_as_blanks(text)).strip()


def _without_comment(text: str, view: str) -> str:
    """`42 (since 84/2)` as 42 and `42 (dollars)` as `42 dollars`; brackets that hold mathematics stay."""
    open_before = [0, *depths(view)]
    at = max((n for n, depth in enumerate(open_before[:-2]) if depth == open_before[-1]), default=0)
    front, inner = text[:at], view[at + 1 : -1]
    if view[-1:] not in (")", "]") or not front.strip() or front.rstrip()[-1] in "^_\\":
        return text
    if _REASON.match(inner):
        return _balanced(front)
    return _balanced(f"{front} {inner}") if _PLAIN_WORDS.fullmatch(inner) and view[at - 1] == " " else text


def _top_level(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """Matches outside of all brackets."""
    depth = depths(text)
    return [match for match in pattern.finditer(text) if depth[match.start()] == 0]


def _taken_apart(text: str) -> tuple[str, tuple[str, ...], str]:
    """(name, other sides, value): the value is the last side, or what stands before `\\approx`."""
    if _RELATION.search(text):  # `and` and `or` are two things there
        return "", (), _JOINER.sub(lambda m: "\\wedge " if "and" in m[0] else ", ", text)
    text = _JOINER.sub(", ", text)
    signs = _top_level(text, _EQUALS)
    commas = _top_level(text, _SEPARATOR)
    if commas and (len(signs) != 1 or signs[0].start() > commas[0].start()):
        return _same_name(text)
    cuts = [0, *(n for sign in signs for n in sign.span()), len(text)]
    sides = [side for a, b in zip(cuts[::2], cuts[1::2], strict=True) if (side := text[a:b].strip())] or [""]
    named = [_is_name(side) for side in sides]
    if (named[-1] and not named[0]) or (_number(sides[0]) is not None and _number(sides[-1]) is None):  # 5 = x
        sides.reverse()
    *before, value = sides
    names, others = ([side for side in before if _is_name(side) == wanted] for wanted in (True, False))
    if others and signs[-1][0].startswith("\\approx"):
        others, value = [*others[:-1], APPROX + value], others[-1]
    return "=".join(names[:1]), tuple(others), value


def _same_name(text: str) -> tuple[str, tuple[str, ...], str]:
    """`x = 2, x = 3` is the list 2, 3 of x."""
    parts = [part.partition("=") for part in _SEPARATOR.split(text)]
    names = {name.strip() for name, _, _ in parts}
    if len(names) == 1 and _is_name(name := names.pop()) and all(sign and "=" not in value for _, sign, value in parts):
        return name, (), ", ".join(value.strip() for _, _, value in parts)
    return "", (), text


def _is_name(side: str) -> bool:
    if _NAME.fullmatch(side):
        return True
    view = words_as_blanks(side)
    wordy = OPEN in side or re.search(r"(?<![\\A-Za-z])[A-Za-z]{4}", view)
    return bool(wordy and _NAMING_WORDS.fullmatch(view) and not DENYING & set(re.findall("[a-z]+", view.lower())))


def _unwrapped(value: str) -> str:
    """Without brackets around all of it that add nothing: {205}, (5), \\{5\\}, (C)."""
    for _ in range(3):
        match = _WRAPPED.fullmatch(words_as_blanks(value).strip() if value.startswith(OPEN) else value)
        inner = match[match.lastindex or 0].strip() if match else ""
        depth = depths(inner)
        if not inner or _SEPARATOR.search(inner) or min(depth) < 0 or depth[-1] or (value[0] in "\\[" and _number(inner) is None):
            break
        value = inner
    return value


def _without_money(value: str) -> tuple[str, Unit]:
    """A currency in front is a unit: -\\$18.00."""
    view = words_as_blanks(value).strip() if value.startswith(OPEN) else value
    if not (money := _MONEY.match(view)):
        return value, ()
    return money[1] + view[money.end() :], read_unit(money[2].replace("US\\$", "\\$").replace(".", ""), only_known=True) or ()


def _measured(value: str) -> tuple[str, Unit, Fraction | None]:
    """(value without its unit, unit, number)."""
    view = words_as_blanks(value)
    if (modulo := _MODULO.search(view)) and (number := _number(value[: modulo.start()])) is not None:
        return value[: modulo.start()].strip(), (f"mod {modulo[modulo.lastindex or 0]}",), number
    if found := _number_in_front(view):
        number, end = found
        if not (rest := view[end:]).strip():
            return value, (), number
        word = re.match("[A-Za-z]+", rest)  # touches the number
        fits = _UNIT.fullmatch(rest) and (not word or word[0] in ATTACHED)
        if fits and (unit := read_unit(rest, only_known=False)) is not None:
            return view[:end].strip(), unit, number
    behind = _UNIT_BEHIND_FORMULA.search(value)
    if behind and (unit := read_unit((behind[1] or behind[2] or "") + (behind[3] or ""), only_known=True)) is not None:
        return value[: behind.start()].strip(), unit, None
    return value, (), None


def _number(text: str) -> Fraction | None:
    found = _number_in_front(words_as_blanks(text).strip())
    return found[0] if found and not text[found[1] :].strip() else None


def _number_in_front(text: str) -> tuple[Fraction, int] | None:
    """(exact value, where it ends) of the number that a text starts with. Digits are bounded by MAX_ANSWER, the exponent by 999."""
    for form in _FORMS:
        if match := form.match(text):
            value = _value(match.groupdict())
            if value is not None:
                return (-value if match["sign"] == "-" else value), match.end()
    return None


def _value(parts: dict[str, str | None]) -> Fraction | None:
    if (start := parts.get("start")) is not None:
        whole, _, places = start.partition(".")
        cycle = parts["cycle"] or parts["digit"] or parts["inner"]
        return Fraction(int(whole + places + cycle) - int(whole + places or "0"), 10 ** len(places) * (10 ** len(cycle) - 1))
    above, below = (parts.get(key) or parts.get(key + "1") or parts.get(other) or "1" for key, other in ("ac", "bd"))
    a, b = (Fraction(re.sub(r"[\s,]", "", text).rstrip(".")) for text in (above, below))
    if b == 0:
        return None
    if (whole := parts.get("whole")) is not None:
        return int(whole) + a / b if 0 < a / b < 1 else None
    return a / b * Fraction(10) ** int(parts.get("e") or parts.get("e1") or parts.get("e2") or 0)


def _normal(text: str) -> str:
    """Without blanks, but for those between digits, and in lower case where it is words."""
    text = words_as_blanks(text).strip()
    if _FOLDED.fullmatch(text):  # but for single letters, which are names
        text = re.sub(r"\w\w+|\b[AI] ", lambda word: word[0].casefold(), text)
    return re.sub(r"(?<=\d)\s+(?=\d)", "\x00", text).replace(" ", "").replace("\x00", " ")


def _number_latex(value: str, number: Fraction) -> str:
    """A number for a parser: a decimal stays one, since it may be rounded; all others exactly."""
    if number.denominator == 1:
        return str(number)
    if re.fullmatch(r"[-+0-9., ]+", value):
        return re.sub("[ ,]", "", value)
    return "-" * (number < 0) + f"\\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"


def _latex(text: str) -> str:
    """LaTeX again. Commas within brackets and between plain numbers separate: they are no thousands commas."""
    if re.fullmatch(r"[\d\s,;.+-]*", text):
        text = re.sub(r"\s*,\s*", ", ", text)
    else:
        text = "".join(", " if char == "," and depth > 0 else char for char, depth in zip(text, depths(text, "([", ")]"), strict=True))
    text = re.sub("([A-Za-z])('+)", lambda m: f"{m[1]}_{{{'p' * len(m[2])}rime}}", text)
    text = _FACTOR.sub(r"\1*", text)
    return text.replace(OPEN, "\\text{").replace(CLOSE, "}").strip()
