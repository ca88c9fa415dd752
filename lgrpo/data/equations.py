"""Equations out of a worked solution in prose, checked: what is kept is arithmetic that holds and leads from the problem to the answer."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_EQUATION = re.compile(r"(?<![\w.%=)])(\(*\d[\d.()+\-*/ ]*[\d)])\s*=\s*(-?\d+(?:\.\d+)?)(?![\w%]|\.\d|\s*[-+*/(]\s*[\d(])")
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "$": None})
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
CONSTANTS = frozenset(Fraction(n) for n in (2, 7, 12, 24, 60, 100))
"""Operands that a problem need not state: halves and doubles, days, months, hours, minutes, per cent."""


def value(expression: str) -> Fraction | None:
    """Exact value of numbers, + - * / and parentheses; None for anything else, and for a division by zero."""
    try:
        return _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("not arithmetic")


def _plain(text: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.translate(_SIGNS))


def extract(problem: str, solution: str, answer: str) -> tuple[list[str], str]:
    """(equations `a+b=c` in order, "") of a solution; ([], reason) where they cannot be trusted.

    Reasons: `no equation`; `false equation`; `other result`: the last one does not give the answer; `missing step`: an operand is neither in
    the problem, nor an earlier result, nor one of CONSTANTS.
    """
    known = {Fraction(n) for n in _NUMBER.findall(_plain(problem))} | CONSTANTS
    out: list[str] = []
    missing = False
    for left, right in _EQUATION.findall(_plain(solution)):
        left = left.replace(" ", "")
        if not re.search(r"[-+*/]", left):
            continue
        if value(left) != Fraction(right):
            return [], "false equation"
        missing |= any(Fraction(n) not in known for n in _NUMBER.findall(left))
        known.add(abs(Fraction(right)))
        if f"{left}={right}" not in out:
            out.append(f"{left}={right}")
    if not out:
        return [], "no equation"
    try:
        wanted = Fraction(_plain(answer).strip())
    except ValueError:
        return [], "other result"
    if Fraction(out[-1].partition("=")[2]) != wanted:
        return [], "other result"
    return ([], "missing step") if missing else (out, "")
