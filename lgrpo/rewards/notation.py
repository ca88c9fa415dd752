"""One spelling of an answer: Unicode mathematics as LaTeX, and nothing that only changes how it looks. No meaning is read here.

Words that stood in \\text{...} are kept between OPEN and CLOSE, which no input can hold, so that they are never taken for variables.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata

OPEN, CLOSE = "\ue000", "\ue001"
_UNMARK = str.maketrans(OPEN + CLOSE, "  ")

# Full-width forms by hand: NFKC would also turn 5² into 52 and 3½ into 31/2.
_SAME = {chr(0xFF01 + i): chr(0x21 + i) for i in range(94)} | dict.fromkeys("−–—﹣‐‑", "-") | dict.fromkeys("⁄∕÷", "/")


def words(table: str) -> frozenset[str]:
    """The words of a table."""
    return frozenset(table.split())


def _pairs(table: str) -> list[tuple[str, str]]:
    """A table of words, two and two."""
    words = table.split()
    return list(zip(words[::2], words[1::2], strict=True))


_COMMAND_SIGNS = r"""∞ \infty π \pi × \times · \cdot ⋅ \cdot ∙ \cdot ≤ \leq ≥ \geq ⩽ \leq ⩾ \geq ≠ \neq ≈ \approx ≅ \approx ± \pm ∓ \mp
    ∪ \cup ∩ \cap ∈ \in ∅ \emptyset √ \sqrt ∛ \sqrt[3] ° ^\circ º ^\circ ˚ ^\circ … \ldots ∠ \angle ℝ \mathbb{R} ℤ \mathbb{Z} ℕ \mathbb{N}
    ℚ \mathbb{Q} ℂ \mathbb{C} ⇒ \Rightarrow → \to ≡ \equiv ⟨ ( ⟩ ) 〈 ( 〉 ) “ " ” " ‘ ' ’ ' ′ '"""
_SIGNS = {sign: name + " " * (name[0] == "\\") for sign, name in _pairs(_COMMAND_SIGNS)} | dict.fromkeys("✓✔✅∎■□", "")
_SAME_CODES = str.maketrans(_SAME)
_RAISED = re.compile(r"(?:([\^_])\{([^{}]*)\})(?:\1\{([^{}]*)\})+")
_TO_NOTHING = """left right bigl bigr Bigl Bigr biggl biggr big Big bigg Bigg middle displaystyle textstyle scriptstyle limits nolimits boldmath
    bf rm it tt sf em bfseries itshape tiny small footnotesize normalsize large Large LARGE huge Huge centering mathbf mathit mathsf mathtt mathnormal
    boldsymbol bold bm pmb underline boxed fbox therefore square blacksquare checkmark qed"""
_TO_BLANK = "thinspace medspace thickspace quad qquad enspace nobreakspace newline"
_OTHER_NAMES = r"""dfrac \frac tfrac \frac cfrac \frac le \leq ge \geq leqslant \leq geqslant \geq ne \neq lt < gt > langle ( rangle ) lparen ( rparen )
    lbrace \{ rbrace \} lvert | rvert | vert | lbrack [ rbrack ] degree ^\circ degrees ^\circ textdegree ^\circ pounds £ euro € yen ¥ rupee ₹
    textdollar \$ mathdollar \$ percent \% dots \ldots cdots \ldots dotsc \ldots simeq \approx cong \approx doteq \approx sim \approx infin \infty
    varnothing \emptyset imath i implies \Rightarrow prime ' ast * colon :"""
_COMMANDS = dict.fromkeys(_TO_NOTHING.split(), "") | dict.fromkeys(_TO_BLANK.split(), " ") | dict(_pairs(_OTHER_NAMES))
"""What becomes of a command, by its name."""
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SPACING = re.compile(r"\\[,;:> ]|~|\\\\(?![A-Za-z])|\\(?:hspace|tag|label)\*?\s*\{[^{}]*\}")
_SPACING_IN_ROWS = re.compile(r"\\[,;:>](?<!\\\\.)|~")
_WORDS = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|hbox|emph|operatorname\*?)\s*\{([^{}]*)\}")
_UPRIGHT = re.compile(r"\\mathrm\s*\{([^{}]*)\}")
_LOOKS = re.compile(
    rf"\\(?:{'|'.join(_TO_NOTHING.split())}|framebox|underbar|uline)(?![A-Za-z])\s*\{{([^{{}}]*)\}}|\\(?:textcolor|color)\s*\{{\w*\}}\s*(?:\{{([^{{}}]*)\}})?"
)
_TOKENS = re.compile(
    r"<\|[^<>|]{1,40}\|>|\[/?INST\]|\[(?:EOS|END|PAD)\]|</?(?:s|eos|bos|pad|end_of_turn|b|i|em|strong|u|code|p|br|answer)\s*/?>"
)
_MARKDOWN = re.compile(r"(?<![\w)*}\\])(\*\*\*|\*\*|\*|__|_|`{1,3})(?=\S)([^*`]{1,200}?)\1(?![\w(*{])")
_MATH_MODE = re.compile(r"(?<!\\)\\[()\[\]]|(?<!\\)\$\$")
_DOLLAR = re.compile(r"(?<!\\)\$")
_BLANKS = re.compile(r"\s+")
_ROOT_OF = re.compile(r"\\sqrt\s*(\[3\])?\s*(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?))")
# A command in the place of braces, which the parser does not read: \\frac\\pi2, \\frac1\\pi, \\sqrt\\pi.
_BARE = re.compile(r"(\\(?:sqrt|frac(?:\s*(?:\{[^{}]*\}|[0-9]))?)\s*)(\\[A-Za-z]+)(?![A-Za-z{\[])\s*")
_CLOCK = re.compile(r"(?<=[\d\s\ue000])([AaPp])\.?\s?[Mm]\b\.?")
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))\s*")


def depths(text: str, opening: str = "([{", closing: str = ")]}") -> list[int]:
    """How many brackets are open behind each character."""
    return list(itertools.accumulate((char in opening) - (char in closing) for char in text))


def words_as_blanks(text: str) -> str:
    """The text without the marks around words; every character keeps its place."""
    return text.translate(_UNMARK)


def spelled(answer: str) -> str:
    """The answer in one spelling. Linear but for a few nested commands of bounded text; call it with bounded text only."""
    text = unicodedata.normalize("NFC", answer)
    if not text.isascii():
        text = re.sub("((?:\\d[\u0305\u0304])+)", lambda m: "\\overline{" + re.sub(r"\D", "", m[1]) + "}", text)
        text = "".join(map(_plain_sign, text))
        text = _RAISED.sub(lambda m: m[1] + "{" + "".join(re.findall(rf"{re.escape(m[1])}\{{([^{{}}]*)\}}", m[0])) + "}", text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    text = _TOKENS.sub(" ", text).replace("{,}", ",").replace("{:}", ":")
    text = re.sub(r"\\!\s*", "", text)
    text = (_SPACING_IN_ROWS if "\\begin" in text else _SPACING).sub(" ", _MATH_MODE.sub(" ", text))
    if len(_DOLLAR.findall(text)) % 2 == 0:  # pairs enclose mathematics; a single one is money
        text = _DOLLAR.sub(" ", text)
    text = _DOLLAR.sub(r"\\$", text)
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    for _ in range(4):  # commands within commands
        text = _LOOKS.sub(lambda m: m[1] or m[2] or "", text)
        text = _UPRIGHT.sub(lambda m: m[1].strip() if m[1].strip() in ("i", "e", "d", "\\%") else OPEN + m[1] + CLOSE, text)
        text = _WORDS.sub(lambda m: OPEN + m[1] + CLOSE, text)
    text = _COMMAND.sub(lambda m: _COMMANDS.get(m[1], m[0]), text)
    text = _BARE.sub(r"\1{\2}", _BARE.sub(r"\1{\2}", text)).replace("{bmatrix}", "{pmatrix}")
    text = _MARKDOWN.sub(r" \2 ", text)
    text = _DEGREE.sub(r"^\\circ ", text.replace("...", "\\ldots "))
    text = _ROOT_OF.sub(lambda m: f"\\sqrt{m[1] or ''}{{{m[2] or m[3]}}}", text) if "√" in answer or "∛" in answer else text
    text = _CLOCK.sub(lambda m: m[1].lower() + "m", text) if ":" in text else text
    return _BLANKS.sub(" ", text).strip()


@functools.lru_cache(maxsize=4096)
def _plain_sign(char: str) -> str:
    if char.isascii():
        return char
    if (known := _SAME.get(char, _SIGNS.get(char))) is not None:
        return known
    kind, _, codes = unicodedata.decomposition(char).partition(" ")
    if kind in ("<super>", "<sub>", "<fraction>"):
        value = "".join(chr(int(code, 16)) for code in codes.split()).translate(_SAME_CODES)
        above, slash, below = value.partition("/")
        return f"\\frac{{{above}}}{{{below}}}" if slash else f"{'_' if kind == '<sub>' else '^'}{{{value}}}"
    if greek := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(char, "")):
        letter = greek[2].replace("LAMDA", "LAMBDA")
        return "\\" + (letter.lower() if greek[1] == "SMALL" else letter.capitalize()) + " "
    return " " if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zs", "Zl", "Zp", "So") or char == "\ufe0f" else char
