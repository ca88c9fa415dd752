"""Multiple choice: the letter that a completion or a gold answer names. An article is never a letter."""

from __future__ import annotations

import re

from lgrpo.rewards.answers import MAX_TEXT, boxes, hash_line
from lgrpo.rewards.notation import spelled, words_as_blanks

LETTERS = "ABCD"
_WRAP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|textit|mathsf|mathit|boldsymbol|boxed|fbox)\s*\{([^{}]*)\}")
_DECORATION = re.compile(r"[*`$\"]|</?[A-Za-z]{1,10}>|\\[()\[\]]")
_GOLD = re.compile(rf"\(?\s*([{LETTERS}])\s*\)?")
# The whole of an answer: B, (B), B., **B**, (B) Mitochondria, B: Mitochondria. Not `B Mitochondria`, nor `A cat`.
_ALONE = re.compile(
    rf"(?:the\s+)?(?:(?:final\s+|correct\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?)?\s*\(?\s*(?P<letter>[{LETTERS}])\s*\)?(?:[.:]?|,?\s+(?:because|since)\b.*)",
    re.IGNORECASE,
)
_LABELLED = re.compile(rf"(?:\((?P<in>[{LETTERS}])\)|(?P<out>[{LETTERS}])[).:])(?=\s*\S)")
_LETTER = rf"(?:\(\s*(?P<in>[{LETTERS}{LETTERS.lower()}])\s*\)|(?P<out>[{LETTERS}])|(?P<last>[{LETTERS.lower()}])(?=[.!]?\s*(?:\n|$)))(?![\w'’+#-])"
_FILLERS = (
    r"(?:\s{0,9}(?::|(?:the|my|is|be|option|choice|letter|answer|indeed|just|then|thus|hence|either|probably|[a-z]{2,12}ly)\b)){0,6}\s{0,9}"
)
_VERB = r"(?:is|would be|must be|should be|will be|has to be|was|est|es|ist|è|:|=|→|-(?=\s))"
_SAID = r"\b(?:answer|ans|choice|réponse|respuesta|antwort|risposta|solution)\b"
_STRONG = re.compile(rf"(?i:{_SAID}(?:[^.\n:=]{{0,60}}?(?<!\w){_VERB}(?!\w)|\s{{0,9}}[>:]?){_FILLERS})(?<!\w){_LETTER}")
_WEAK = re.compile(rf"(?i:\b(?:option|choose|pick|select|choice)\b{_FILLERS}){_LETTER}")
_CORRECTED = re.compile(
    rf"(?i:\b(?:not|n[o']t)\b|n['’]t)\s*(?:option\s*)?\(?[{LETTERS}]\)?,?\s+(?i:but|rather|it['’]s|it is)(?:\s+rather)?\s+{_LETTER}"
)
_SUBJECT = re.compile(rf"(?<![\w]){_LETTER}(?i:\s{{1,9}}is\s{{1,9}}(?:the\s{{1,9}})?(?:correct|right|best|answer)\b)")
_BRACKETED = re.compile(rf"\((?P<in>[{LETTERS}])\)")
_LAST_WORDS = re.compile(
    r"(?i:(?:so|thus|hence|therefore|it is|it's|i think|i choose|i pick|i would say|i say|it must be|must be|final)[,:]?\s+)+"
    rf"{_LETTER}(?:,? not \(?[{LETTERS}]\)?)?[.!]?\s*"
)
_DENIED = re.compile(
    r"\b(?:not|doubt|cannot|never|neither|nor|no(?!,)|wrong|incorrect|unlikely|eliminate[sd]?|exclude[sd]?|rules? out|except)\b|n['’]t\b",
    re.IGNORECASE,
)
_JOINED = re.compile(rf"\)?\s{{0,9}}(?:or|and|/|,|&)\s{{0,9}}(?:maybe\s|perhaps\s|possibly\s)?\(?[{LETTERS}]\b")
_JOINS = re.compile(rf"(?<!\w)[{LETTERS}]\)?\s{{0,9}}(?:or|and|/|&)\s{{0,9}}$")
_REFUTED = re.compile(
    r"[)\s]{0,9}(?:(?:is|are|was|seems|can|would|could|does)\b\s{0,9})?(?:(?:clearly|definitely|also|be)\b\s{0,9}){0,3}"
    r"(?:(?:not|wrong|incorrect|false|impossible|cannot|fails?|if)\b|(?:is|can|does)n['’]?t\b|n['’]t\b|\?)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?]\s|\n|;|,\s*(?:so|thus|therefore|hence|but)\b")


def gold_letter(gold: str) -> str | None:
    """The letter of a gold answer: `B`, `(B)`, `\\text{(B)}`, in capitals; None for anything else."""
    match = _GOLD.fullmatch(_unwrapped(gold))
    return match[1] if match else None


def labelled_letter(answer: str) -> str | None:
    """The letter of `(C) 12`, with the text of the choice behind it."""
    match = _LABELLED.match(answer := _unwrapped(answer))
    return _named(match) if match and not _REFUTED.match(answer, match.end()) else None


def chosen_letter(text: str) -> str | None:
    """The letter that a completion settles on, or None. Reads the last MAX_TEXT characters, in linear time.

    In this order: the last balanced \\boxed{...}, and where that holds no letter, what is said behind it; the line after the last ####; the
    last `answer is B`, `Answer: (B)`, then `B is correct`, `option B`; a last line that holds nothing else; the last letter in brackets. What a sentence
    denies (`cannot be the answer B`, `option A is wrong`), joins to another letter or goes on with (`D-glucose`) is not chosen.
    """
    text = text.rstrip()[-MAX_TEXT:]
    if found := boxes(text):
        _, start, end = found[-1]
        return _letter(text[start:end]) or _said(_bare(text[end + 1 :]))
    line = hash_line(text)
    if line is not None:
        return _letter(line)
    return _said(_bare(text))


def _said(text: str) -> str | None:
    """The letter that sentences settle on."""
    said = (_last(pattern, text, reach) for pattern, reach in ((_CORRECTED, 0), (_STRONG, 60), (_SUBJECT, 60), (_WEAK, 60)))
    if (letter := next(filter(None, said), None)) is not None:
        return letter
    line = text.rpartition("\n")[2].strip()
    so = _LAST_WORDS.fullmatch(_SENTENCE.split(line)[-1].strip())
    return _letter(line) or (_named(so) if so else _last(_BRACKETED, text, reach=9))


def _last(pattern: re.Pattern[str], text: str, reach: int = 60) -> str | None:
    """The letter of the last statement that its sentence does not take back, in the `reach` characters before it or in what follows."""
    letter = None
    for match in pattern.finditer(text):
        at = match.end()
        sentence = _SENTENCE.split(text[max(0, match.start() - reach) : at])[-1] if reach else ""
        joined = _JOINED.match(text, at) or _JOINS.search(text[max(0, match.start() - 16) : match.start()])
        if not _DENIED.search(sentence) and not joined and not _REFUTED.match(text, at):
            letter = _named(match)
    return letter


def _named(match: re.Match[str]) -> str:
    return next(value for value in match.groupdict().values() if value).upper()


def _letter(answer: str) -> str | None:
    """The letter of an answer that is nothing but a choice, with or without its text."""
    match = _ALONE.fullmatch(_unwrapped(answer))
    return _named(match) if match else labelled_letter(answer)


def _bare(text: str) -> str:
    """Without emphasis, dollars and tags."""
    text = _DECORATION.sub(" ", _WRAP.sub(r"\1", text)).strip()
    return re.sub(rf"(?<![\w])['\[<‘“]([{LETTERS}])['\]>’”](?!\w)", r"\1", text)


def _unwrapped(answer: str) -> str:
    """Without markup. Looks at 256 characters: a choice stands at the front."""
    return words_as_blanks(spelled(answer[:256])).strip(' \t\n*_$`"')
