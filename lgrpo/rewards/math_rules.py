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
    value = latex2sympy(spelled, is_real=real, convert_degrees=True, normalization_config=None, conversion_config=_CASE)
    return _imaginary(value)


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
    a, b = _read(gold, real), _read(answer, real)
    decided = _equations(a, b)
    if decided is not None:
        return decided
    a, b = _as_sets(a, b)
    equal = verify([a], [b], timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True)
    return equal and not _apart(a, b) and not _other_order(a, b, gold.startswith("\\{") != answer.startswith("\\{"))


def _read(latex: str, real: bool) -> Any:
    """What is written, or where `\\wedge` joins inequalities in one variable, the numbers of which all of them hold."""
    parts = [parsed(part, real) for part in latex.split("\\wedge")]
    if len(parts) == 1:
        return parts[0]
    if len({symbol for part in parts for symbol in part.free_symbols}) != 1:
        raise ValueError("of several variables")
    return sympy.Intersection(*(part.as_set() for part in parts))


# Corrections of what math-verify takes for equal, or misses. tests/rewards/test_math.py has a case for each that fails without it.


def _imaginary(value: Any) -> Any:
    """i as the imaginary unit, but where it is an index: math-verify takes it for a letter."""
    return value.subs({s: sympy.I for s in value.free_symbols if s.name == "i"}) if isinstance(value, sympy.Expr) else value


def _equations(a: Any, b: Any) -> bool | None:
    """Whether an answer with a sign in it equals the gold answer, or None where math-verify may tell.

    It takes the last side of `k^2=5` for the value 5, misses multiples of an equation, as 2x = 6 of x = 3, and takes any two equations without a
    solution for equal.
    """
    if isinstance(a, sympy.Expr) and isinstance(b, _Relation | And):
        return False
    if not (isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq)) or a.has(sympy.Set) or b.has(sympy.Set):
        return None
    ratio = sympy.simplify((a.lhs - a.rhs) / (b.lhs - b.rhs))
    return bool(ratio.is_number and ratio.is_finite and ratio.is_zero is False and a.free_symbols)


def _as_sets(a: Any, b: Any) -> tuple[Any, Any]:
    """Inequalities in one variable as the numbers of which one of them holds. math-verify does not read several, nor |x| < 3 for -3 < x < 3."""
    told = [_inequalities(x) for x in (a, b)]
    free = {symbol for parts in told for part in parts for symbol in part.free_symbols}
    if len(free) != 1 or not all(parts or isinstance(x, sympy.Set) for parts, x in zip(told, (a, b), strict=True)):
        return a, b
    a, b = (sympy.Union(*(part.as_set() for part in parts)) if parts else x for parts, x in zip(told, (a, b), strict=True))
    return a, b


def _inequalities(x: Any) -> tuple[Any, ...]:
    if isinstance(x, sympy.FiniteSet):
        return x.args if all(isinstance(part, _Relation) for part in x.args) else ()
    return (x,) if isinstance(x, _Relation | And) and not isinstance(x, sympy.Eq) else ()


def _apart(a: Any, b: Any) -> bool:
    """Values that are provably apart, however near: math-verify rounds to 6 decimals or 15 digits, and \\frac{1}{2^{60}} becomes 0.

    Where symbols remain they get values, the same on both sides. Where one side is written as a decimal, TOLERANCE relative to the larger
    one is near enough, but never for an integer.
    """
    if isinstance(a, _Relation) and isinstance(b, _Relation):
        a, b = (x if x.lhs.free_symbols else x.reversed for x in (a, b))
        return a.lhs == b.lhs and _apart(a.rhs, b.rhs)
    if isinstance(a, sympy.FiniteSet) and isinstance(b, sympy.FiniteSet):
        return all(e.is_number for e in (*a.args, *b.args)) and any(map(_apart, _by_value(a), _by_value(b)))
    if any(isinstance(a, kind) and isinstance(b, kind) for kind in (sympy.Interval, sympy.Tuple, And)):
        return any(map(_apart, _written(a), _written(b)))
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)) or a.is_finite is False or b.is_finite is False:
        return False
    points = {s: sympy.Rational(sympy.prime(n + 5), 8) for n, s in enumerate(sorted(a.free_symbols | b.free_symbols, key=str))}
    x, y = (_exact(value.subs(points)) for value in (a, b))
    if (a.has(sympy.Float) or b.has(sympy.Float)) and not (x.is_Integer or y.is_Integer):
        return bool(abs(x - y).evalf() > TOLERANCE * max(abs(x).evalf(), abs(y).evalf()))
    try:
        return (x - y).evalf(5, strict=True, maxn=_DIGITS) != 0
    except sympy.core.evalf.PrecisionExhausted:  # equal, as far as can be computed
        return False


def _exact(value: Any) -> Any:
    """Decimals as the fractions that they are, and everything carried out that was only written down."""
    return sympy.nsimplify(value.doit(), rational=True) if value.has(sympy.Float) else value.doit()


def _by_value(numbers: Any) -> list[Any]:
    return sorted(numbers.args, key=lambda x: (sympy.re(x).evalf(), sympy.im(x).evalf()))


def _written(x: Any) -> tuple[Any, ...]:
    """Elements in the order in which they were written."""
    return (x.start, x.end) if isinstance(x, sympy.Interval) else tuple(getattr(x, "_unsorted_args", x.args))


def _other_order(a: Any, b: Any, braces: bool) -> bool:
    """A point or an open interval beside a list: (5,2) is not 2,5; beside a set in braces it is another thing in any order."""
    lists = [isinstance(x, sympy.FiniteSet) for x in (a, b)]
    if lists[0] == lists[1] or not all(isinstance(x, sympy.FiniteSet | sympy.Tuple | sympy.Interval) for x in (a, b)):
        return False
    left, right = _written(a), _written(b)
    return braces or len(left) != len(right) or any(map(_apart, left, right))
