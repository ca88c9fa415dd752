"""What a run has cost: floating point operations of its matrix products, and seconds of its steps.

Operations are counted in the traced programs, loops times their trips, so that the count is that of the work asked for, whatever the processor: XLA's own
analysis counts the body of a loop once. Products are all that is counted; a model's other operations are a few per cent, and the seconds have them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from lgrpo.train.steps.program import Program


@dataclasses.dataclass(frozen=True)
class Flop:
    """Operations of one call of a program."""

    fixed: float
    loops: tuple[float, ...] = ()
    """Of one trip of each loop whose trips depend on the data, in the order of the program."""

    def of(self, trips: Sequence[int] = ()) -> float:
        """Of a call in which these loops made so many trips. Errors: ValueError where their number differs."""
        return self.fixed + sum(one * n for one, n in zip(self.loops, trips, strict=True))


def inner(eqn: Any) -> Iterator[Jaxpr]:
    """Programs that an equation holds: bodies of loops, branches, functions."""
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
        if isinstance(value, ClosedJaxpr | Jaxpr):
            yield value.jaxpr if isinstance(value, ClosedJaxpr) else value


def _product(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)


def count(jaxpr: Jaxpr) -> Flop:
    """Operations of a traced program. Of alternatives the dearest is counted. A loop without products inside makes no entry in `loops`."""
    fixed, loops = 0.0, []
    for eqn in jaxpr.eqns:
        name, parts = eqn.primitive.name, [count(program) for program in inner(eqn)]
        own, inside = sum(p.fixed for p in parts), [x for p in parts for x in p.loops]
        if name == "dot_general":
            fixed += _product(eqn)
        elif name == "while":
            loops += [own] if own else []
        elif name == "cond":
            fixed += max((p.fixed for p in parts), default=0.0)
        elif name == "scan":
            fixed += eqn.params["length"] * own
            loops += [eqn.params["length"] * x for x in inside]
        elif name == "shard_map":
            fixed += math.prod(eqn.params["mesh"].shape.values()) * own
        else:
            fixed += own
            loops += inside
    return Flop(fixed, tuple(loops))


class Compute:
    """Of a run so far, over its restarts."""

    def __init__(self, spent: Mapping[str, float]) -> None:
        """spent: what `totals` said when the run was saved; {} for a new one."""
        self.flop: float | None = spent.get("flop", 0.0)
        """None once something ran that cannot be counted."""
        self.seconds = spent.get("seconds", 0.0)
        """Of steps: sampling, grading and updates; without compilation, evaluation and saving."""
        self._known: dict[Any, Flop] = {}

    def program(self, program: Program, *args: Any, cfg: Any) -> Flop:
        """Cost of one call; traced once for each shape of its arguments."""
        shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(args))
        if (key := (id(program), shapes)) not in self._known:
            self._known[key] = count(program.trace(*args, cfg=cfg).jaxpr.jaxpr)
        return self._known[key]

    def add(self, flop: float | None) -> None:
        """Of work that was done; None where it cannot be counted."""
        self.flop = None if self.flop is None or flop is None else self.flop + flop

    def totals(self) -> dict[str, float | None]:
        """For a checkpoint."""
        return {"flop": self.flop, "seconds": self.seconds}

    def metrics(self, step_s: float, compile_s: float) -> dict[str, float]:
        """After a step that took step_s seconds, compile_s of them in the compiler."""
        self.seconds += max(0.0, step_s - compile_s)
        return {"perf/seconds_total": self.seconds} | ({} if self.flop is None else {"perf/flop_total": self.flop})
