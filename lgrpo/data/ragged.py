"""Rows of token ids of different lengths in two arrays: a list of lists takes ten times the memory, and a loop over rows for whatever is asked of it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """M rows; row i is a slice of `values`, and a list of ints where it is asked for by its number."""

    values: np.ndarray  # int32 [sum of sizes]
    sizes: np.ndarray  # int64 [M]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls(np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(sizes.sum())), sizes)

    @classmethod
    def joined(cls, parts: Iterable[Ragged]) -> Ragged:
        """The rows of one after those of another."""
        found = [cls.of(()), *parts]
        return cls(np.concatenate([part.values for part in found]), np.concatenate([part.sizes for part in found]))

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, row: int) -> list[int]:
        return self.values[self._ends[row] - self.sizes[row] : self._ends[row]].tolist()

    def kept(self, keep: np.ndarray) -> Ragged:
        """The rows where keep, bool [M], is True."""
        return Ragged(self.values[np.repeat(keep, self.sizes)], self.sizes[keep])

    def holds(self, ids: Iterable[int]) -> np.ndarray:
        """bool [M]: whether a row has one of these ids."""
        found = np.zeros(len(self), bool)
        found[np.searchsorted(self._ends, np.flatnonzero(np.isin(self.values, list(ids))), side="right")] = True
        return found

    def between(self, head: Sequence[int], tail: Sequence[int]) -> Ragged:
        """Every row with these ids before and after it."""
        values = np.empty(len(self.values) + len(self) * (len(head) + len(tail)), np.int32)
        sizes = self.sizes + len(head) + len(tail)
        ends = np.cumsum(sizes)
        own = np.ones(len(values), bool)
        for ids, starts in ((head, ends - sizes), (tail, ends - len(tail))):
            for offset, token in enumerate(ids):
                values[starts + offset], own[starts + offset] = token, False
        values[own] = self.values
        return Ragged(values, sizes)

    def padded(self, width: int, pad: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [M, width], mask bool [M, width]); no row is longer than width."""
        tokens = np.full((len(self), width), pad, np.int32)
        at = np.arange(width)
        mask = at >= width - self.sizes[:, None] if left else at < self.sizes[:, None]
        tokens[mask] = self.values  # row-major, as the mask is read
        return tokens, mask
