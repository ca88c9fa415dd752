"""Rows without padding for supervised training: several records stand one behind the other in a row, and only where they stand is decided here.

A record takes a row's positions for its prompt and for its completion without the last step, whose input predicts nothing. The rows of a batch have one width
and one number of completion steps at most, so that a run needs a program or two and not one per batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lgrpo.config import ModelConfig

_STRETCH = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)  # widths that are tried, in lengths of the longest record
_TRIALS = 16  # batches that are packed on trial
_UNIT = 8  # widths are multiples of this


@dataclasses.dataclass(frozen=True)
class Records:
    """Sizes of all records of a stream, int [M] each, and the padded widths P and T that their columns have."""

    prompts: np.ndarray
    completions: np.ndarray  # thoughts, end of thinking and answer
    prompt_width: int
    completion_width: int

    @property
    def inputs(self) -> np.ndarray:
        """Positions that a record takes in a row."""
        return self.prompts + self.completions - 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a stream's packed batches: S slices of R rows of `width` positions, of which at most `steps` predict something."""

    width: int
    steps: int
    rows: int  # R * S of all batches but the fullest
    slices: int
    ways: int

    def grid(self, used: int) -> tuple[int, int]:
        """(R, S) that hold `used` rows. A batch that is fuller than others gets an eighth more, until it fits."""
        rows = self.rows
        while rows < used:
            rows += max(1, self.rows // 8)
        per_slice = -(-rows // self.slices)
        return -(-per_slice // self.ways) * self.ways, self.slices


def assign(inputs: np.ndarray, steps: np.ndarray, width: int, most_steps: int) -> list[list[int]]:
    """Best fit, longest record first: the records of every row. inputs, steps int [N]; none is above width and most_steps."""
    rows: list[list[int]] = []
    free, free_steps = np.zeros(len(inputs), np.int64), np.zeros(len(inputs), np.int64)
    for record in np.argsort(-inputs, kind="stable"):
        count = len(rows)
        room = np.where(free_steps[:count] >= steps[record], free[:count] - inputs[record], -1)
        fits = room >= 0
        row = int(np.argmin(np.where(fits, room, width))) if fits.any() else count
        if row == count:
            rows.append([])
            free[row], free_steps[row] = width, most_steps
        rows[row].append(int(record))
        free[row] -= inputs[record]
        free_steps[row] -= steps[record]
    return rows


def _up(size: float, unit: int) -> int:
    return int(-(-size // unit)) * unit


def _relative_cost(width: int, model: ModelConfig) -> float:
    """Work per position in a row of this width, in that of the matrices. Scores are counted twice, for their softmax."""
    heads = model.n_heads * model.head_dim
    matrices = 2 * model.d_model * (heads + model.n_kv_heads * model.head_dim) + 3 * model.d_model * model.d_ff
    return 1 + 4 * width * heads / matrices


def plan(records: Records, batch: int, *, model: ModelConfig, microbatch: int = 0, ways: int = 1) -> Layout:
    """The layout for batches of `batch` records: the cheapest of a few widths on batches drawn for trial.

    microbatch: padded sequences whose positions a slice may have; 0: one slice. ways: R is a multiple of it.
    """
    inputs, steps = records.inputs, records.completions
    rng = np.random.default_rng(0)
    trials = [rng.choice(len(inputs), min(batch, len(inputs)), replace=False) for _ in range(_TRIALS)]
    longest = int(inputs.max())
    # A batch of equal records or of one needs no room for more.
    widths = sorted({_up(min(longest * s, max(inputs[t].sum() for t in trials)), _UNIT) for s in _STRETCH} | {_up(longest, _UNIT)})

    def tried(width: int) -> tuple[float, Layout]:
        most = min(width, _up(max(steps.max(), 1.05 * width * steps.sum() / inputs.sum()), _UNIT))
        used = max(len(assign(inputs[t], steps[t], width, most)) for t in trials)
        padded = records.prompt_width + records.completion_width
        slices = -(-used * width // (microbatch * padded)) if microbatch else 1
        layout = Layout(width, most, used, slices, ways)
        rows = layout.grid(used)[0] * slices
        return rows * width * _relative_cost(width, model), layout

    return min((tried(width) for width in widths if width >= longest), key=lambda x: x[0])[1]


def packed(records: Records, at: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """Where the records at[n], n < N, stand in their batch's rows.

    pack_inputs int32 [R,S,width]: index into the positions of the padded batch, n * (P + T) + column, that stands there; -1: nothing.
    pack_steps int32 [R,S,steps]: places in the row whose next position is a completion step of the same record; -1: none.
    """
    inputs, steps, prompts = records.inputs[at], records.completions[at], records.prompts[at]
    rows = assign(inputs, steps, layout.width, layout.steps)
    per_slice, slices = layout.grid(len(rows))
    places = np.full((per_slice * slices, layout.width), -1, np.int32)
    predict = np.full((per_slice * slices, layout.steps), -1, np.int32)
    padded = records.prompt_width + records.completion_width
    for row, members in enumerate(rows):
        _fill(places[row], predict[row], members, inputs, steps, prompts, padded, records.prompt_width)
    shape = (per_slice, slices)
    return {"pack_inputs": places.reshape(*shape, -1), "pack_steps": predict.reshape(*shape, -1)}


def _fill(
    places: np.ndarray,
    predict: np.ndarray,
    members: Sequence[int],
    inputs: np.ndarray,
    steps: np.ndarray,
    prompts: np.ndarray,
    padded: int,
    prompt_width: int,
) -> None:
    """Writes one row."""
    start = step = 0
    for n in members:
        size, count = inputs[n], steps[n]
        places[start : start + size] = n * padded + prompt_width - prompts[n] + np.arange(size)
        predict[step : step + count] = start + prompts[n] - 1 + np.arange(count)
        start, step = start + size, step + count
