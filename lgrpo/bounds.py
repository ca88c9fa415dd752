"""Bounds of single settings, written as the type of the field that they hold for; `validate` reads them. Nothing here loads JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple


class Bound(NamedTuple):
    """What a value must satisfy, and the complaint when it does not."""

    holds: Callable[[float], bool]
    complaint: str


Count = Annotated[int, Bound(lambda x: x >= 1, "too small; use a number >= 1")]
Natural = Annotated[int, Bound(lambda x: x >= 0, "too small; use a number >= 0")]
NonNegative = Annotated[float, Bound(lambda x: x >= 0, "too small; use a number >= 0")]
Positive = Annotated[float, Bound(lambda x: x > 0, "must be positive; use a number > 0")]
Mass = Annotated[float, Bound(lambda x: 0 < x <= 1, "not a probability mass; use a number in (0, 1]")]
BelowOne = Annotated[float, Bound(lambda x: 0 <= x < 1, "out of range; use a number in [0, 1)")]
ScoreGradient = Literal["plain", "bounded", "aligned"]
"""Of a law's setting and of the density that reads it."""
