"""What the instructions of a compiled program do: operations of products, bytes of memory, bytes of collectives.

XLA's own analysis counts the body of a loop once, and knows no collectives.
"""

from __future__ import annotations

import dataclasses
import math
import re

from lgrpo.train.hlo import Computation, Instruction, Module, Shape, inside

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)

# Operations ------------------------------------------------------------------------------------------------------------------------------------


def _axes(labels: str) -> dict[str, int]:
    return {label: at for at, label in enumerate(labels)}


def _window(text: str, field: str, count: int, default: int) -> list[int]:
    found = re.search(rf"\b{field}=([-\dx_]+)", text)
    return [int(x.split("_")[0]) for x in found[1].split("x")] if found else [default] * count


def _positions(size: int, out: int, window: int, stride: int, low: int, spread: int, dilation: int) -> int:
    """Pairs of an output and a window position that meet an input: what padding and spreading put in between is no work."""
    last = (size - 1) * spread
    hits = (o * stride + w * dilation - low for o in range(out) for w in range(window))
    return sum(0 <= at <= last and at % spread == 0 for at in hits)


def _convolution(computation: Computation, found: Instruction) -> float:
    """TPUs write every product as a convolution: batch axes and split axes become spatial ones."""
    left, right = (computation.instructions[n].shapes[0].dims for n in found.operands[:2])
    labels = re.match(r"(\w+)_(\w+)->(\w+)", found.attribute("dim_labels", r"([\w>-]+)"))
    a, b, c = (_axes(labels[n]) for n in (1, 2, 3))
    out = found.shapes[0].dims
    spatial = sorted(x for x in a if x.isdigit())
    text = found.attribute("window", r"\{([^}]*)\}") or ""
    fields = [("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1)]
    stride, low, spread, dilation = (_window(text, field, len(spatial), default) for field, default in fields)
    pairs = 1
    for n, x in enumerate(spatial):
        pairs *= _positions(left[a[x]], out[c[x]], right[b[x]], stride[n], low[n], spread[n], dilation[n])
    return 2.0 * pairs * out[c["b"]] * out[c["f"]] * right[b["i"]]


def _dot(computation: Computation, found: Instruction) -> float:
    left = computation.instructions[found.operands[0]].shapes[0].dims
    axes = filter(None, (found.attribute("lhs_contracting_dims", r"\{([\d,]*)\}") or "").split(","))
    return 2.0 * math.prod(found.shapes[0].dims) * math.prod(left[int(axis)] for axis in axes)


def flop(module: Module, computation: Computation, found: Instruction) -> float:
    """Operations of the products in one instruction, its fusion included."""
    total = 0.0
    for where, inner in [(computation, found), *inside(module, found)]:
        if inner.op in ("convolution", "dot"):
            total += (_dot if inner.op == "dot" else _convolution)(where, inner)
    return total


# Bytes of memory -------------------------------------------------------------------------------------------------------------------------------

_NOTHING = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "while",
    "conditional",
}
_NOTHING |= {"call", "async-start", "async-update", "async-done", "iota", "opt-barrier", "domain"}
_HINTS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "AsyncCollective", "Sharding")
_PART = ("dynamic-slice", "slice", "gather")
_SAME = ("bitcast", "reshape", "copy", "convert", "transpose")


def _total(shapes: tuple[Shape, ...]) -> int:
    return sum(s.bytes for s in shapes)


def _shape_of(computation: Computation, name: str) -> tuple[Shape, ...]:
    return computation.instructions[name].shapes if name in computation.instructions else ()


def _read_of(module: Module, fused: Computation, name: str, whole: int) -> int:
    """Bytes that a fusion reads of one of its parameters: of what is only cut, the cuts; of what is only written into, nothing."""
    if fused.root.name == name:  # handed on as it is
        return whole
    read = 0
    for user in fused.users(name):
        if user.op in _PART and user.operands[0] == name and name not in user.operands[1:]:
            read += sum(s.size for s in user.shapes)
        elif user.op == "dynamic-update-slice" and user.operands[0] == name and name not in user.operands[1:]:
            continue
        elif user.op == "bitcast":
            read += _read_of(module, fused, user.name, whole)
        elif user.op == "fusion":
            inner = module.called(user, "calls")
            places = [p for p, outer in zip(inner.parameters(), user.operands, strict=False) if outer == name]
            read += sum(_read_of(module, inner, p.name, whole) for p in places)
        else:
            return whole
    return min(read, whole)


def _written_by(fused: Computation, root: Instruction, whole: int) -> int:
    """Bytes that a fusion writes of one output: of what is updated in place, the update."""
    while root.op in _SAME and root.operands[0] in fused.instructions and root.shapes[0].size == whole:
        if root.op == "convert":
            break
        root = fused.instructions[root.operands[0]]
    if root.op == "dynamic-update-slice":
        return min(whole, sum(s.size for s in _shape_of(fused, root.operands[1])))
    return whole


def _fusion_bytes(module: Module, computation: Computation, found: Instruction) -> int:
    fused = module.called(found, "calls")
    total = 0
    for parameter, outer in zip(fused.parameters(), found.operands, strict=False):
        whole = _total(_shape_of(computation, outer))
        total += _read_of(module, fused, parameter.name, whole) if whole else 0
    roots = [fused.instructions[n] for n in fused.root.operands] if fused.root.op == "tuple" else [fused.root]
    if len(roots) != len(found.shapes):
        return total + _total(found.shapes)
    return total + sum(_written_by(fused, root, shape.bytes) for root, shape in zip(roots, found.shapes, strict=True) if shape.bytes)


def memory(module: Module, computation: Computation, found: Instruction) -> int:
    """Bytes of the main memory that one instruction reads and writes; an operand that is cut counts as the cut."""
    if found.op in _NOTHING or found.op.endswith("-done"):
        return 0
    if found.op == "custom-call" and any(hint in found.attributes for hint in _HINTS):
        return 0
    if found.op == "fusion":
        return _fusion_bytes(module, computation, found)
    written = _total(found.result)
    if found.kind in _PART:
        source = _total(_shape_of(computation, found.operands[0]))
        return written + min(source, sum(s.size for s in found.result))
    if found.op in ("dynamic-update-slice", "scatter"):
        update = _shape_of(computation, found.operands[1 if found.op == "dynamic-update-slice" else 2])
        return 2 * _total(update) if written else _total(update)
    return written + sum(_total(_shape_of(computation, name)) for name in found.operands)


# Collectives -----------------------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Collective:
    """One of them, each time it runs. bytes: of its result on one device; sent: over the device's links, as a ring does it."""

    kind: str
    channel: str
    """A TPU spreads one collective over several fusions, some of them in a loop that it runs beside: they share this."""
    bytes: int
    sent: float
    devices: int  # that take part
    source: str  # the operation in JAX
    shapes: tuple[Shape, ...]


def _group(module: Module, found: Instruction) -> int:
    """Devices that exchange with one another."""
    text = found.attributes.partition("replica_groups=")[2]
    if tiled := re.match(r"\[(\d+),(\d+)\]<=", text):
        return int(tiled[2])
    if text.startswith("mesh["):
        sizes = dict(re.findall(r"'([\w]+)'=(\d+)", text.partition("]")[0]))
        axes = re.search(r"\{((?:'\w+'(?::[^,}]*)?,?\s*)*)\}", text)
        return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", axes[1])) if axes else module.partitions
    if listed := re.match(r"\{\{([\d,]+)\}", text):
        return listed[1].count(",") + 1
    return module.partitions


def collective(module: Module, found: Instruction) -> Collective | None:
    """None where an instruction is none of them."""
    if found.kind not in COLLECTIVES or found.op.endswith("-done"):
        return None
    devices = 2 if found.kind == "collective-permute" else _group(module, found)
    shapes = found.result
    size = sum(s.size for s in shapes)
    share = (devices - 1) / devices
    sent = {"all-reduce": 2 * share, "reduce-scatter": devices - 1, "collective-permute": 1.0}.get(found.kind, share) * size
    channel = found.attribute("channel_id", r"(\d+)") or found.name
    return Collective(found.kind, channel, size, sent, devices, found.source, shapes)
