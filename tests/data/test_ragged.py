"""Rows of ids in two arrays against a list of lists."""

import numpy as np
import pytest

from lgrpo.data.ragged import Ragged

ROWS = [[], [3, 1, 4], [1], [], [5, 9, 2, 6], [5, 3, 5], []]


@pytest.mark.parametrize("rows", [ROWS, ROWS[1:3], [[]], []])
def test_a_list_of_lists_and_back(rows):
    ids = Ragged.of(rows)
    assert list(ids) == rows and len(ids) == len(rows) and ids.sizes.tolist() == [len(row) for row in rows]
    assert (ids.values.dtype, ids.sizes.dtype) == (np.int32, np.int64)
    assert list(Ragged.joined([ids, Ragged.of([[7]]), ids])) == [*rows, [7], *rows]
    for wanted in ([], [5], [1, 9], [8]):
        assert ids.holds(wanted).tolist() == [not set(wanted).isdisjoint(row) for row in rows]
    for head, tail in (([], []), ([70, 71], [80]), ([], [80]), ([70], [])):
        assert list(ids.between(head, tail)) == [[*head, *row, *tail] for row in rows]
    keep = np.arange(len(rows)) % 2 == 0
    assert list(ids.kept(keep)) == rows[::2]


@pytest.mark.parametrize("left", [False, True])
def test_padded(left):
    tokens, mask = Ragged.of(ROWS).padded(5, 99, left=left)
    assert (tokens.dtype, tokens.shape, mask.dtype) == (np.int32, (7, 5), bool)
    for row, found, real in zip(ROWS, tokens.tolist(), mask.tolist(), strict=True):
        fill, used = [99] * (5 - len(row)), [True] * len(row)
        assert found == (fill + row if left else row + fill)
        assert real == ([False] * len(fill) + used if left else used + [False] * len(fill))
