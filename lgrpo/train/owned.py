"""Groups of a run of several processes: each stays on the process whose devices sampled it; the others know its reward, its validity and its age.

A group has a number for as long as a step lasts, the same on every process. What is selected is numbers; `Pool.place` makes arrays of them again and
moves, over the network, only the groups whose slot is on another process than they are.
"""

from __future__ import annotations

import collections
from typing import Any

import jax
import numpy as np

from lgrpo.runs import multihost
from lgrpo.train.steps.rl import group
from lgrpo.types import Array, Rollout

PART = 8
"""Groups that are moved at once: every process holds as many of others beside its own."""


def at_home(owner: np.ndarray, home: np.ndarray, part: int) -> np.ndarray:
    """Which group goes into each slot: as many as can stay where they are. int [M].

    Groups keep the part of the batch that they are in, `part` slots each. owner: process of each group, -1: none; home: process of each slot.
    """
    order = np.arange(len(home))
    for start in range(0, len(home), part):
        slots = range(start, start + part)
        waiting = collections.defaultdict(collections.deque)
        for slot in slots:
            waiting[int(owner[slot])].append(slot)
        stays = {slot: waiting[int(home[slot])].popleft() for slot in slots if waiting[int(home[slot])]}
        rest = iter(sorted(slot for queue in waiting.values() for slot in queue))
        order[start : start + part] = [stays[slot] if slot in stays else next(rest) for slot in slots]
    return order


class Pool:
    """The groups of one step, by number from 1; 0 is an empty slot."""

    def __init__(self, buffer: Rollout) -> None:
        """buffer: leaves [B, G, ...], global arrays sharded along B; a generation and a batch have as many groups, on the same devices."""
        self._like = buffer
        self.home = multihost.owners(buffer.finish)
        """int [B]: the process of each slot, and of each group of a generation."""
        self._mine: dict[int, Rollout] = {}
        self._owner = [np.array([-1])]

    def add(self, rollout: Rollout, keep: Array) -> np.ndarray:
        """Numbers of the groups of a generation, leaves [N, ...] or [B, G, ...]. Only those with keep [B] may be placed later."""
        first, per = sum(map(len, self._owner)), rollout.finish.size // len(self.home) if rollout.finish.ndim == 1 else 1
        rows, own = multihost.own_rows(rollout)
        own = group(own, per) if rollout.finish.ndim == 1 else own
        for n, row in enumerate(rows[::per] // per):
            if keep[row]:
                self._mine[first + int(row)] = jax.tree.map(lambda x, n=n: np.array(x[n]), own)
        self._owner.append(self.home)
        return first + np.arange(len(self.home))

    def owner(self, numbers: np.ndarray) -> np.ndarray:
        """The process of each group, -1 for empty slots."""
        return np.concatenate(self._owner)[numbers]

    def place(self, numbers: np.ndarray) -> Rollout:
        """The groups as global arrays [B, G, ...], sharded as the buffer is. numbers int [B]."""
        first = self._like.finish
        slots = {s for shard in first.addressable_shards for s in range(*shard.index[0].indices(len(numbers)))}
        absent = np.zeros(len(numbers), np.int32)
        absent[[s for s in slots if numbers[s] and int(numbers[s]) not in self._mine]] = 1
        held = self._mine | self._receive(numbers[multihost.total(absent) > 0])
        empty = jax.tree.map(lambda x: np.zeros(x.shape[1:], x.dtype), self._like)
        leaves = {s: jax.tree.leaves(held[int(numbers[s])] if numbers[s] else empty) for s in slots}

        def make(at: int, like: jax.Array) -> jax.Array:
            def rows(index: Any) -> np.ndarray:
                return np.stack([leaves[s][at] for s in range(*index[0].indices(len(numbers)))])

            return jax.make_array_from_callback(like.shape, like.sharding, rows)

        return jax.tree.unflatten(jax.tree.structure(self._like), [make(i, x) for i, x in enumerate(jax.tree.leaves(self._like))])

    def _receive(self, numbers: np.ndarray) -> dict[int, Rollout]:
        """These groups, from their processes. Every process asks for the same ones."""
        found: dict[int, Rollout] = {}
        owner, me = self.owner(numbers), jax.process_index()
        for process in sorted(set(owner.tolist())):
            theirs = numbers[owner == process].tolist()
            for at in range(0, len(theirs), PART):
                part = theirs[at : at + PART]
                sent = jax.tree.map(lambda x: np.zeros((PART, *x.shape[1:]), x.dtype), self._like)
                if process == me:
                    for n, number in enumerate(part):
                        jax.tree.map(lambda x, y, n=n: x.__setitem__(n, y), sent, self._mine[number])
                came = multihost.from_one(sent, process)
                found |= {number: jax.tree.map(lambda x, n=n: x[n], came) for n, number in enumerate(part)}
        return found
