"""A key is a function of seed, step, stream, prompt and sample, and of all of them: two uses that share one would be correlated without any other sign."""

import itertools

import jax
import numpy as np
import pytest

from lgrpo.keys import Stream, key_for, row_keys


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_any_two_uses_have_different_keys():
    uses = list(itertools.product((0, 1, 7), (0, 1, 2), Stream))
    assert len({bits(key_for(*use)) for use in uses}) == len(uses)


def test_rows_are_named_by_prompt_and_sample():
    key = key_for(0, 0, Stream.ROLLOUT)
    rows = row_keys(key, np.array([3, 5, 9]), 4)
    assert rows.shape == (12,) and len({bits(row) for row in rows}) == 12
    assert bits(row_keys(key, np.array([5]), 4)[2]) == bits(rows[6])  # alone or in company
    assert bits(row_keys(key, np.array([5]), 2, 2)[0]) == bits(rows[6])  # in one go or in two
    assert bits(row_keys(key_for(0, 1, Stream.ROLLOUT), np.array([5]), 4)[2]) != bits(rows[6])


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed"):
        key_for(-1, 0, Stream.INIT)
