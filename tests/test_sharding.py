"""Where devices stand in the mesh."""

import jax
import numpy as np
import pytest

from lgrpo.errors import UserError
from lgrpo.sharding import arrange


class Chip:
    """A TPU chip as the mesh utilities see it."""

    def __init__(self, number, slice_index):
        self.id, self.slice_index, self.process_index = number, slice_index, number
        self.platform = self.device_kind = "fake"


def test_slices_lie_along_data():
    chips = [Chip(n, n // 4) for n in range(8)]
    grid = arrange(chips, (4, 2, 1))
    slices = np.vectorize(lambda chip: chip.slice_index)(grid)
    assert (slices == np.array([0, 0, 1, 1])[:, None, None]).all()
    assert sorted(chip.id for chip in grid.ravel()) == list(range(8))
    with pytest.raises(UserError, match=r"mesh.data=1: the devices are in 2 slices.*use 2"):
        arrange(chips, (1, 8, 1))


def test_devices_of_one_slice_keep_their_order():
    assert arrange(jax.devices()[:4], (2, 1, 2)).ravel().tolist() == jax.devices()[:4]
