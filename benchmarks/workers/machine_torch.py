"""What torch reaches on this machine: matrix product and copy. args: size, megabytes, repeats."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.timing import alternate


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a float32 matrix product and of an elementwise pass (read and write) in place."""
    size, count = args["size"], args["megabytes"] * 2**20 // 4
    a, x = torch.randn(size, size), torch.zeros(count)
    parts = alternate({"matmul": lambda: a @ a, "copy": lambda: x.add_(1)}, args["repeats"])
    return {"parts": parts, "flop": 2 * size**3, "bytes": 8 * count}
