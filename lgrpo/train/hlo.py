"""The text of a compiled program as instructions, with the trips of its loops. What they do is counted in work.py.

The text is that of `jax.stages.Compiled.as_text()`, of any backend:
  computations  `%name (parameters) -> shape {` ... `}`, the last of which is ENTRY
  instructions  `%name = shape opcode(%operand, ...), attribute=..., ...`
  shapes        `bf16[2,128]{1,0:T(8,128)S(1)}`, or a tuple of them; S(n) is a memory of the chip itself, which costs no bandwidth of the main one
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "token": 0}
_SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w-]*)\(")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array. bytes: of the main memory, 0 where it lies in another."""

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def size(self) -> int:
        """Bytes, wherever they lie."""
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.search(r"\d+", self.dtype)[0])
        return -(-bits * math.prod(self.dims) // 8)

    @property
    def bytes(self) -> int:
        return 0 if "S(" in self.layout else self.size


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    op: str
    shapes: tuple[Shape, ...]  # of a tuple its leaves
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, name: str, pattern: str = r"%?([\w.-]+)") -> str | None:
        """The first group of `pattern` after `name=`."""
        found = re.search(rf"\b{name}={pattern}", self.attributes)
        return found and found[1]

    @property
    def kind(self) -> str:
        """The opcode without -start."""
        return self.op.removesuffix("-start")

    @property
    def result(self) -> tuple[Shape, ...]:
        """What it writes: of the tuple of an asynchronous start, the element that is the result."""
        if not self.op.endswith("-start") or len(self.shapes) < 2 or self.kind in ("all-reduce", "async"):
            return self.shapes
        return self.shapes[:1] if self.kind in ("copy", "slice", "dynamic-slice") else self.shapes[1:2]

    @property
    def source(self) -> str:
        """The name of the operation in JAX."""
        return self.attribute("op_name", r'"([^"]*)"') or ""


@dataclasses.dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next(i for i in reversed(self.instructions.values()) if i.root)

    def parameters(self) -> list[Instruction]:
        """In their order."""
        return sorted((i for i in self.instructions.values() if i.op == "parameter"), key=lambda i: int(i.attributes.partition(")")[0]))

    def users(self, name: str) -> Iterator[Instruction]:
        return (i for i in self.instructions.values() if name in i.operands)


@dataclasses.dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: Computation
    partitions: int
    header: str

    def called(self, instruction: Instruction, *names: str) -> Computation:
        """The computation in the first of these attributes that is there."""
        return self.computations[next(found for name in names if (found := instruction.attribute(name)))]


def _split(text: str) -> tuple[str, str]:
    """`(a, (b)) rest` -> what is inside the first parentheses, and the rest."""
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text[1:at], text[at + 1 :]
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _instruction(line: str) -> Instruction | None:
    head = _LINE.match(line)
    if head is None:
        return None
    rest = line[head.end() :]
    shape, rest = _split(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode = _OPCODE.match(rest)
    if opcode is None:
        return None
    inside, attributes = _split(rest[opcode.end() - 1 :])
    shapes = tuple(Shape(t, tuple(map(int, filter(None, d.split(",")))), layout or "") for t, d, layout in _SHAPE.findall(shape))
    op = opcode[1]
    if op in ("parameter", "constant"):
        return Instruction(head[2], op, shapes, (), f"{inside}){attributes}", bool(head[1]))
    return Instruction(head[2], op, shapes, tuple(re.findall(r"%([\w.-]+)", inside)), attributes, bool(head[1]))


def parse(text: str) -> Module:
    """Of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    current = entry = None
    header = text.split("\n", 1)[0]
    for line in text.splitlines()[1:]:
        if head := _HEAD.match(line):
            current = computations[head[2]] = Computation(head[2])
            entry = current if head[1] else entry
        elif current is not None and (found := _instruction(line)):
            current.instructions[found.name] = found
    partitions = re.search(r"num_partitions=(\d+)", header)
    return Module(computations, entry, int(partitions[1]) if partitions else 1, header)


# Loops -----------------------------------------------------------------------------------------------------------------------------------------


def _number(computation: Computation, name: str) -> int | None:
    found = computation.instructions.get(name)
    value = re.match(r"-?\d+", found.attributes) if found and found.op == "constant" else None
    return int(value[0]) if value else None


def _counter(module: Module, loop: Instruction) -> tuple[int, int] | None:
    """(place in the carried tuple, first value that ends the loop) where the condition compares a counter with a constant."""
    condition = module.called(loop, "condition")
    for compare in condition.instructions.values():
        if compare.op == "fusion":  # CPU fuses the comparison: its operands are those of the fusion
            inner = module.called(compare, "calls")
            place = {p.name: outer for p, outer in zip(inner.parameters(), compare.operands, strict=True)}
            compare = next((i for i in inner.instructions.values() if i.op == "compare"), compare)
            names = [place.get(n, n) for n in compare.operands]
            constants = [_number(inner, n) if n in inner.instructions else _number(condition, n) for n in names]
        else:
            names, constants = list(compare.operands), [_number(condition, n) for n in compare.operands]
        if compare.op != "compare" or compare.attribute("direction") != "LT" or len(names) != 2 or constants[1] is None:
            continue
        counter = condition.instructions.get(names[0])
        if counter is not None and counter.op == "get-tuple-element":
            return int(counter.attribute("index", r"(\d+)")), constants[1]
    return None


def _start(module: Module, computation: Computation, name: str, place: int | None = None) -> int:
    """The value of a counter before its loop; 0 where it cannot be seen. place: which element of a tuple."""
    found = computation.instructions.get(name)
    if found is None:
        return 0
    if found.op == "constant":
        return _number(computation, name) or 0
    if found.op == "tuple" and place is not None:
        return _start(module, computation, found.operands[place])
    if found.op == "get-tuple-element":
        return _start(module, computation, found.operands[0], int(found.attribute("index", r"(\d+)")))
    if found.op == "while" and place is not None:
        end = _counter(module, found)
        return end[1] if end and end[0] == place else 0
    return _start(module, computation, found.operands[0]) if found.op in ("copy", "bitcast", "copy-done", "copy-start") else 0


def _step(module: Module, body: Computation, name: str) -> int:
    """What one trip adds to a counter, followed back from its new value; 0 where it cannot be seen. An unrolled loop adds more than 1."""
    found = body.instructions[name]
    if found.op == "add":
        numbers = [_number(body, n) for n in found.operands]
        if numbers[0] is None and numbers[1] is None:
            return 0
        at = 1 if numbers[1] is not None else 0
        return numbers[at] + _step(module, body, found.operands[1 - at])
    if found.op == "fusion" and len(found.shapes) == 1 and found.operands:
        fused = module.called(found, "calls")
        return _step(module, fused, fused.root.name) + _step(module, body, found.operands[0])
    return _step(module, body, found.operands[0]) if found.op in ("copy", "bitcast", "copy-done", "copy-start") else 0


def trips(module: Module, computation: Computation, loop: Instruction) -> int:
    """How often a loop runs; where the data may end it sooner, the most it can; 1 where nothing says how often."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    counter = _counter(module, loop)
    if counter is None:
        return 1
    place, end = counter
    body = module.called(loop, "body")
    step = _step(module, body, body.root.operands[place]) if body.root.op == "tuple" else 1
    return max(0, -(-(end - _start(module, computation, loop.operands[0], place)) // max(1, step)))


# Whole programs --------------------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ran:
    """An instruction outside of fusions, and how often it runs. loops: the loops around it, outermost first."""

    computation: Computation
    instruction: Instruction
    times: float
    loops: tuple[Instruction, ...]


def branches(module: Module, found: Instruction) -> list[Computation]:
    """The alternatives of a conditional."""
    listed = found.attribute("branch_computations", r"\{([^}]*)\}")
    names = re.findall(r"%([\w.-]+)", listed) if listed else [found.attribute(n) for n in ("false_computation", "true_computation")]
    return [module.computations[n] for n in names]


def runs(module: Module, computation: Computation | None = None, times: float = 1.0, loops: tuple[Instruction, ...] = ()) -> Iterator[Ran]:
    """Everything that may run, all branches of alternatives included."""
    computation = computation or module.entry
    for found in computation.instructions.values():
        yield Ran(computation, found, times, loops)
        if found.op == "while":
            count = trips(module, computation, found)
            yield from runs(module, module.called(found, "body"), times * count, (*loops, found))
        elif found.op == "conditional":
            for branch in branches(module, found):
                yield from runs(module, branch, times, loops)
        elif found.op in ("call", "async-start"):
            yield from runs(module, module.called(found, "to_apply", "calls"), times, loops)


def inside(module: Module, found: Instruction) -> Iterator[tuple[Computation, Instruction]]:
    """Instructions of the fusions that one instruction is made of."""
    if found.op == "fusion":
        fused = module.called(found, "calls")
        for inner in fused.instructions.values():
            yield fused, inner
            yield from inside(module, inner)
