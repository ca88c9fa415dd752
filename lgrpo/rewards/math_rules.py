"""Comparison of two LaTeX answers by math-verify, and the few corrections of ours to what it misses. Imported by the worker process only (sympy).

LaTeX is parsed by a grammar: no part of an answer is evaluated as Python. We hand over whole answers, without math-verify's search for
mathematics in prose, and without its removal of units and words: nothing may be dropped that changes an answer.
"""

from __future__ import annotations

import functools
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from latex2sympy2_extended.sets import FiniteSet
from math_verify import verify
from math_verify.grader import should_treat_as_complex

APPROX = "\\approx "
TOLERANCE = sympy.Rational(1, 10**6)
ROUNDED = sympy.Rational(1, 100)
_SPELLING = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False)
_CASE = ConversionConfig(lowercase_symbols=False)
_Relation = sympy.core.relational.Relational
_DIGITS = 400
"""Up to so many digits are computed to tell two exact values apart."""


@functools.lru_cache(maxsize=4096)
def parsed(latex: str, real: bool) -> Any:
    """The sympy object. Raises what the parser raises."""
    spelled = normalize_latex(latex, _SPELLING)
    return latex2sympy(spelled, is_real=real, convert_degrees=True, normalization_config=None, conversion_config=_CASE)


def judge(gold: str, answer: str) -> str:
    """correct, wrong, or unparsable (where one of the two cannot be read as mathematics, or not be compared).

    An answer of several lines is an equation whose sides, one a line, must all agree with the last one; behind `\\approx` within ROUNDED.
    """
    try:
        *sides, value = answer.split("\n")
        if not all(_agrees(value, side) for side in sides):
            return "wrong"
        return "correct" if _equal(gold, value) else "wrong"
    except MemoryError:
        raise
    except Exception:  # sympy raises nearly everything on odd input
        return "unparsable"


def _agrees(value: str, side: str) -> bool:
    if not side.startswith(APPROX):
        return _equal(value, side)
    a, b = (parsed(x, True) for x in (value, side.removeprefix(APPROX)))
    return bool(abs(_exact(a) - _exact(b)).evalf() <= ROUNDED * abs(_exact(a)).evalf())


def _equal(gold: str, answer: str) -> bool:
    real = not (should_treat_as_complex(gold) or should_treat_as_complex(answer))
    a, b = parsed(gold, real), parsed(answer, real)
    if isinstance(a, sympy.Expr) and isinstance(b, _Relation | And):  # math-verify takes the last side, whatever stands before
        return False
    if isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq) and not a.has(sympy.Set) and not b.has(sympy.Set):
        return _same_equation(a, b)
    if isinstance(a, sympy.Union | sympy.Interval) and isinstance(b, sympy.FiniteSet) and all(isinstance(x, _Relation) for x in b.args):
        b = sympy.Union(*(x.as_set() for x in b.args))  # x < 1 or x > 2
    if not verify([a], [b], timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True):
        return False
    braces = gold.startswith("\\{") != answer.startswith("\\{")
    return not (_differs(a, b) or _other_order(a, b, braces))


# Corrections: each refuses what math-verify takes for equal. Their cases: tests/rewards/kinds.json and field_reports.json.


def _differs(a: Any, b: Any) -> bool:
    """Values that are provably apart, however near: math-verify rounds to 6 decimals or 15 digits, and \\frac{1}{2^{60}} becomes 0.

    Where symbols remain they get values, the same on both sides. Where one side is written as a decimal, TOLERANCE relative to the larger
    one is near enough, but never for an integer.
    """
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        return any(map(_differs, (a.start, a.end), (b.start, b.end)))
    if isinstance(a, sympy.Tuple) and isinstance(b, sympy.Tuple):
        return any(map(_differs, a.args, b.args))
    if isinstance(a, sympy.FiniteSet) and isinstance(b, sympy.FiniteSet):
        return all(e.is_number for e in (*a.args, *b.args)) and any(map(_differs, _by_value(a), _by_value(b)))
    if isinstance(a, _Relation) and isinstance(b, _Relation):
        a, b = (x if x.lhs.free_symbols else x.reversed for x in (a, b))
        return a.lhs == b.lhs and _differs(a.rhs, b.rhs)
    if isinstance(a, And) and isinstance(b, And):
        return len(a.args) == len(b.args) and any(map(_differs, a._unsorted_args, b._unsorted_args))
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)) or not (a.is_finite is not False and b.is_finite is not False):
        return False
    points = {s: sympy.Rational(sympy.prime(n + 5), 8) for n, s in enumerate(sorted(a.free_symbols | b.free_symbols, key=str))}
    decimal = a.has(sympy.Float) or b.has(sympy.Float)
    x, y = (_exact(value.subs(points)) for value in (a, b))
    if decimal and not (x.is_Integer or y.is_Integer):
        far = abs(x - y).evalf() > TOLERANCE * max(abs(x).evalf(), abs(y).evalf())
        return far == True  # noqa: E712  (sympy's own truth values)
    try:
        return (x - y).evalf(5, strict=True, maxn=_DIGITS) != 0
    except sympy.core.evalf.PrecisionExhausted:  # equal, as far as can be computed
        return False


def _exact(value: Any) -> Any:
    """Decimals as the fractions that they are, and everything carried out that was only written down."""
    return sympy.nsimplify(value.doit(), rational=True) if value.has(sympy.Float) else value.doit()


def _by_value(numbers: Any) -> list[Any]:
    return sorted(numbers.args, key=lambda x: (sympy.re(x).evalf(), sympy.im(x).evalf()))


def _other_order(a: Any, b: Any, braces: bool) -> bool:
    """A point or an open interval beside a list: (5,2) is not 2,5; beside a set in braces it is another thing in any order."""
    lists = [isinstance(x, sympy.FiniteSet) for x in (a, b)]
    if lists[0] == lists[1] or not all(isinstance(x, sympy.FiniteSet | sympy.Tuple | sympy.Interval) for x in (a, b)):
        return False
    left, right = (_written(x) for x in (a, b))
    return braces or len(left) != len(right) or any(_differs(x, y) for x, y in zip(left, right, strict=True))


def _written(x: Any) -> tuple[Any, ...]:
    """Elements in the order in which they were written."""
    if isinstance(x, sympy.Interval):
        return (x.start, x.end)
    return tuple(x._unsorted_args) if isinstance(x, FiniteSet) else x.args


def _same_equation(a: Any, b: Any) -> bool:
    """Multiples of each other, as 2x = 6 of x = 3: math-verify misses them, and takes any two equations without a solution for equal."""
    ratio = sympy.simplify((a.lhs - a.rhs) / (b.lhs - b.rhs))
    return bool(ratio.is_number and ratio.is_finite and ratio.is_zero is False)
