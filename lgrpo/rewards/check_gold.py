"""How well the grader does on real gold answers: each against itself and rewritings of it (all right), and against wrong ones (all refused).

Run: python -m lgrpo.rewards.check_gold [--limit N] PATH...     (a JSON Lines file with `answer` in each line, or a folder of such files)
Exit code 1 when less than 99.5 % of the rewritings are right or less than 99.9 % of the wrong ones are refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction

from lgrpo.config import DataConfig
from lgrpo.errors import UserError
from lgrpo.rewards.choice import LETTERS, gold_letter
from lgrpo.rewards.grade import grade_all
from lgrpo.rewards.reading import read_answer
from lgrpo.runs.metrics import summary_table

RIGHT, REFUSED = 0.995, 0.999
_WRONG = "wrong: "


@dataclasses.dataclass(frozen=True)
class Case:
    """A completion to be graded against a gold answer. Rewritings whose name begins with `wrong: ` must be refused."""

    name: str
    text: str
    gold: str

    @property
    def right(self) -> bool:
        """The verdict that is wanted."""
        return not self.name.startswith(_WRONG)


@dataclasses.dataclass
class Tally:
    """Share of cases with the wanted verdict, and the first few without."""

    cases: int = 0
    good: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)


def cases(gold: str) -> Iterator[Case]:
    """Every rewriting that makes sense for this gold answer, right ones and wrong ones."""
    yield Case("itself", f"#### {gold}", gold)
    yield Case("boxed", f"so 3 and 4 make \\boxed{{{gold}}}.", gold)
    number = read_answer(gold).number
    if letter := gold_letter(gold):
        yield Case("in brackets", f"\\boxed{{({letter})}}", gold)
        yield Case("text", f"\\boxed{{\\text{{{letter}}}}}", gold)
        yield Case("sentence", f"A good question. The answer is {letter}.", gold)
        yield from (Case(f"{_WRONG}other letter", f"\\boxed{{{other}}}", gold) for other in LETTERS if other != letter)
        yield Case(f"{_WRONG}two letters", f"\\boxed{{{LETTERS[:2]}}}", gold)
    elif number is not None:
        yield from _right_numbers(number, gold)
        yield from _wrong_numbers(number, gold)
    else:
        yield Case("dollars", f"\\boxed{{${gold}$}}", gold)
        yield Case("spaced", f"\\boxed{{ {gold.replace('+', ' + ').replace(',', ', ')} }}", gold)
        yield Case("dfrac", f"\\boxed{{{gold.replace(chr(92) + 'frac', chr(92) + 'dfrac')}}}", gold)
        yield from (Case(f"{_WRONG}{name}", f"\\boxed{{{text}}}", gold) for name, text in (("plus 1", f"{gold}+1"), ("a number", "123457")))


def _decimal(number: Fraction) -> str | None:
    """All its decimals, or None where they do not end within 30."""
    places = next((n for n in range(30) if (number * 10**n).denominator == 1), None)
    if places is None:
        return None
    digits = str(abs(int(number * 10**places))).rjust(places + 1, "0")
    return ("-" if number < 0 else "") + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def _right_numbers(number: Fraction, gold: str) -> Iterator[Case]:
    plain = _decimal(number)
    if plain is not None:
        whole, _, places = plain.partition(".")
        grouped = f"{int(whole):,}" if int(whole) else whole
        yield Case("1,000", f"#### {grouped}" + (f".{places}" if places else ""), gold)
        yield Case("1000.0", f"#### {plain}{'0' if places else '.0'}", gold)
        yield Case("with a unit", f"\\boxed{{{plain}\\text{{ dollars}}}}", gold)
        yield Case("$ and words", f"#### ${plain} per day", gold)
    a, b, sign = abs(number.numerator) * 2, number.denominator * 2, "-" if number < 0 else ""
    yield Case("a/b", f"#### {sign}{a}/{b}", gold)
    yield Case("frac", f"\\boxed{{{sign}\\frac{{{a}}}{{{b}}}}}", gold)


def _wrong_numbers(number: Fraction, gold: str) -> Iterator[Case]:
    step = 1 if number.denominator == 1 else abs(number) / 1000
    near = {"a little more": number + step, "a little less": number - step, "ten times": number * 10, "double": number * 2 + step}
    for name, value in near.items():
        if value != number and (shown := _decimal(value)) is not None:
            yield Case(f"{_WRONG}{name}", f"#### {shown}", gold)
    plain = _decimal(number)
    if number and plain:
        yield Case(f"{_WRONG}other sign", f"#### {_decimal(-number)}", gold)
        yield Case(f"{_WRONG}million", f"\\boxed{{{plain}\\text{{ million}}}}", gold)
        yield Case(f"{_WRONG}two answers", f"\\boxed{{{plain} or {_decimal(number + 1)}}}", gold)
        yield Case(f"{_WRONG}algebra", f"\\boxed{{{plain}x}}", gold)
        yield Case(f"{_WRONG}another fraction", f"#### {number.denominator * 3}/{abs(number.numerator) + 7 * number.denominator}", gold)
    if plain and len(plain.lstrip("-")) > 1 and plain.lstrip("-").isdigit():
        yield Case(f"{_WRONG}blank inside", f"\\boxed{{{plain[:-1]} {plain[-1]}}}", gold)


def study(golds: Sequence[str], cfg: DataConfig | None = None) -> dict[str, Tally]:
    """Grades every case of every gold answer. Returns tallies by name of the rewriting."""
    todo = [case for gold in golds for case in cases(gold)]
    verdicts = grade_all([case.text for case in todo], [case.gold for case in todo], cfg or DataConfig())
    out: dict[str, Tally] = {}
    for case, verdict in zip(todo, verdicts, strict=True):
        tally = out.setdefault(case.name, Tally())
        tally.cases += 1
        tally.good += verdict.correct == case.right
        if verdict.correct != case.right and len(tally.failures) < 5:
            tally.failures.append(f"{case.text!r} for gold {case.gold!r}: {verdict.category}")
    return out


def shares(tallies: dict[str, Tally]) -> tuple[float, float]:
    """(share of rewritings that are right, share of wrong ones that are refused); 1 where there are none."""

    def share(of: list[Tally]) -> float:
        total = sum(t.cases for t in of)
        return sum(t.good for t in of) / total if total else 1.0

    wrong = [t for name, t in tallies.items() if name.startswith(_WRONG)]
    return share([t for name, t in tallies.items() if not name.startswith(_WRONG)]), share(wrong)


def load_golds(path: pathlib.Path, limit: int = 0) -> list[str]:
    """The `answer` of each line of a file, numbers as text. Errors: UserError."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        return [str(json.loads(line)["answer"]) for line in (lines[:limit] if limit else lines)]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}; give JSON Lines with an `answer` in each line") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line per file and per rewriting. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lgrpo.rewards.check_gold", description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=pathlib.Path, metavar="PATH")
    parser.add_argument("--limit", type=int, default=0, help="answers per file; 0: all")
    args = parser.parse_args(argv)
    files = [file for path in args.paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    total: dict[str, Tally] = {}
    by_file = []
    for file in files:
        golds = load_golds(file, args.limit)
        found = study(golds)
        right, refused = shares(found)
        by_file.append({"file": file.stem, "answers": len(golds), "right": f"{right:.4%}", "refused": f"{refused:.4%}"})
        for name, tally in found.items():
            into = total.setdefault(name, Tally())
            into.cases, into.good = into.cases + tally.cases, into.good + tally.good
            into.failures += tally.failures[: 5 - len(into.failures)]
    if not total:
        raise UserError("no gold answers found; give .jsonl files or folders that hold some")
    rows = [{"rewriting": name, "cases": t.cases, "as wanted": f"{t.good / t.cases:.4%}"} for name, t in total.items()]
    print(summary_table(by_file, list(by_file[0])), summary_table(rows, list(rows[0])), sep="\n\n")
    print(*(f"  {name}: {line}" for name, t in total.items() for line in t.failures), sep="\n")
    right, refused = shares(total)
    print(f"right: {right:.4%} (wanted {RIGHT:.1%})   refused: {refused:.4%} (wanted {REFUSED:.1%})")
    return 0 if right >= RIGHT and refused >= REFUSED else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
