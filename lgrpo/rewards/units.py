"""Units of measure behind or before a value, and when two of them contradict each other."""

from __future__ import annotations

import re

from lgrpo.rewards.notation import words

Unit = tuple[str, ...]
"""Known units by one name each (with exponents and `/`), or the plain nouns of a description such as `red apples`; empty: none."""
PERCENT, DEGREE = ("%",), ("degree",)

_TABLE = r"""% \% % percent pct percentage; degree ^\circ degree deg; dollar \$ $ dollar usd buck; cent cent ¢; euro € eur euro; won ₩; ruble ₽
    pound £ gbp pound lb lbs; yen ¥ jpy yen; rupee ₹ rs inr rupee; mm mm millimeter millimetre; cm cm centimeter centimetre; dm dm; m m meter metre
    km km kilometer kilometre; inch inch inches; foot ft foot feet; yard yd yard; mile mi mile; acre acre; hectare ha hectare; mg mg milligram
    g g gram gm; kg kg kilogram kilo; ounce oz ounce; ton ton tonne; second s sec second; minute min minute; hour h hr hour; day day; week week
    month month; year yr year; ml ml mL milliliter millilitre; l l L liter litre; gallon gal gallon; km/hour kmh kph kmph; mile/hour mph
    celsius C celsius; fahrenheit F fahrenheit; watt W watt; volt V volt; ampere A ampere; joule J joule; newton N newton; kWh kWh
    radian rad radian"""
# One unit an entry: its name, then how it is written.
_SPELLINGS = {name: spellings for name, *spellings in (entry.split() for entry in re.split("[;\n]", _TABLE))}
KNOWN = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings}
ATTACHED = words("mm cm dm km kg mg lb lbs oz ft yd mi sec min hr hrs ml mL mph kmh kph kWh dollars cents deg degrees percent")
"""What may touch its number: other letters that do are algebra (5x, 2pi)."""
_LETTERS = frozenset("mgshlLWVAJNCF")
DENYING = words(
    "half double twice triple minus negative not no never cannot wrong incorrect least most than neither nor if or false except"
)
CHANGING = DENYING | words("""and to plus times over by mod modulo squared cubed choose pi sqrt point is isn are aren was be but none
    th st nd rd under below over above doubled tripled thrice halved factorial inverse reciprocal root power opposite unless instead either maybe
    halves third thirds quarter quarters hundred hundreds thousand thousands million millions billion billions trillion trillions
    dozen dozens score pair pairs mil bn zero one two three four five six seven eight nine ten eleven twelve
    twenty thirty forty fifty sixty seventy eighty ninety""")
"""Words beside a value that change it, deny it, or say that there is more than one."""
_FRACTIONAL = re.compile(r"(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand|million|billion)ths?")
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_IGNORED = words("unit of the in total each long wide tall high old more left away")
_MAX_WORDS = 5
_WORD = re.compile(r"[^\W\d_]+|[%$€£¥₹₩₽¢]|\\[$%]|\^\\circ|/|\^\s*\{?\s*[23]\s*\}?")


def read_unit(text: str, only_known: bool) -> Unit | None:
    """The unit that words and signs name, or None where they are none. only_known: plain nouns are none."""
    tokens = _WORD.findall(text)
    plain = [word.lower() for word in re.findall("[A-Za-z]+", text)]
    if sum(map(str.isalpha, tokens)) > _MAX_WORDS or any(word in CHANGING or _FRACTIONAL.fullmatch(word) for word in plain):
        return None
    unit: list[str] = []
    power = ""
    for token in tokens:
        name = KNOWN.get(token)
        if name is None and len(token) > 1:  # mass and metre: of a single letter the case matters
            name = KNOWN.get(token.lower()) or KNOWN.get(_singular(token))
        if token.lower() in _POWERS:
            power = _POWERS[token.lower()]
        elif token.startswith("^") and name is None:
            unit[-1:] = [part + "^" + re.sub(r"\D", "", token) for part in unit[-1:]]
        elif token == "/" or token.lower() == "per":
            unit.append("/")
        elif name is not None or {token.lower(), token.lower().rstrip("s")} & _IGNORED:
            if name in ("celsius", "fahrenheit") and unit[-1:] == ["degree"]:
                unit.pop()
            unit += [part + power for part in (name or "").partition("/") if part]
            power = ""
        elif only_known or (len(token) == 1 and token not in _LETTERS) or not token.isalpha():
            return None
        else:
            unit.append(_singular(token))
    return tuple(unit)


def clash(a: Unit, b: Unit) -> bool:
    """Whether two units contradict: both are there, and the units of measure differ, or where one has none, no noun is common."""
    if not a or not b:
        return False
    known, other = ([part for part in unit if part.partition("^")[0] in _SPELLINGS or part == "/"] for unit in (a, b))
    return known != other if known and other else not set(a) & set(b)


def _singular(word: str) -> str:
    word = word.lower()
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
