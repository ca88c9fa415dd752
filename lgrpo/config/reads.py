"""The part of a config that a compiled step reads. What is left out of it cannot compile the step anew, and reading it is an error.

A view is a pytree: numbers that only enter arithmetic are its leaves, all else is static and hashable. Inside jit it is read like the config itself
(`cfg.algo.clip_low` is then a traced array), so that a step is written as if it had the whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

import jax
import numpy as np

from lgrpo.config.settings import ExperimentConfig


def end_ids(data: Any) -> tuple[int, ...]:
    """Ids of all tokens that end an answer, `eos` first. data: a resolved DataConfig, or a view of one."""
    return (data.eos_id, *data.more_eos_ids)


class Reads:
    """A view: values by dotted path, static ones and arrays apart."""

    def __init__(self, static: Mapping[str, Any], arrays: Mapping[str, Any], prefix: str = "") -> None:
        self._static, self._arrays, self._prefix = dict(static), dict(arrays), prefix

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        path = self._prefix + name
        for values in (self._arrays, self._static):
            if path in values:
                return values[path]
        if any(known.startswith(path + ".") for known in (*self._arrays, *self._static)):
            return Reads(self._static, self._arrays, path + ".")
        raise AttributeError(f"{path} is no part of what this step declares to read; add it there, or leave it out of the step")

    def _key(self) -> tuple[Any, ...]:
        return (self._prefix, tuple(sorted(self._static.items(), key=lambda x: x[0])), tuple(sorted(self._arrays)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reads) and self._key() == other._key() and list(self._arrays.items()) == list(other._arrays.items())

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Reads({', '.join(sorted((*self._static, *(f'{name} (array)' for name in self._arrays))))})"


def _flatten(view: Reads) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    names = tuple(sorted(view._arrays))
    return tuple(view._arrays[name] for name in names), (names, _Static(view._static), view._prefix)


def _unflatten(aux: tuple[Any, ...], leaves: Iterable[Any]) -> Reads:
    names, static, prefix = aux
    return Reads(static.values, dict(zip(names, leaves, strict=True)), prefix)


class _Static:
    """A dict that can be compared and hashed."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self._items = tuple(sorted(values.items(), key=lambda x: x[0]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)


jax.tree_util.register_pytree_node(Reads, _flatten, _unflatten)


def _spread(path: str, value: Any, apart: frozenset[str]) -> dict[str, Any]:
    """`path` as a whole, or, where something inside it stands apart, field by field without that."""
    if path in apart:
        return {}
    if not any(name.startswith(path + ".") for name in apart):
        return {path: value}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        found |= _spread(f"{path}.{field.name}", getattr(value, field.name), apart)
    return found


@dataclasses.dataclass(frozen=True)
class Wants:
    """What a step reads of a config: fields and whole blocks, by dotted path."""

    static: tuple[str, ...]
    """Fields or blocks that shape the program."""
    arrays: tuple[str, ...] = ()
    """Numbers, inside or outside these blocks, that only enter arithmetic."""
    unread: tuple[str, ...] = ()
    """Parts of the blocks that the step does not read."""

    def of(self, cfg: ExperimentConfig, **facts: Any) -> Reads:
        """The view. facts: static values that were derived from other fields."""
        apart = frozenset((*self.arrays, *self.unread))
        static: dict[str, Any] = dict(facts)
        for path in self.static:
            static |= _spread(path, attrgetter(path)(cfg), apart)
        return Reads(static, {path: _number(attrgetter(path)(cfg)) for path in self.arrays})


def _number(value: Any) -> Any:
    return np.uint32(value) if isinstance(value, int) else np.float32(value)
