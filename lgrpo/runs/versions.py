"""What computed a result."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@functools.cache
def source_digest() -> str:
    """Of every module of this package, whatever git or the installer say."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computed a result, and the git commit where there is one ("+" appended: with local changes)."""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        found[name] = importlib.metadata.version(name)
    try:
        git = functools.partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True)
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        found["git"] = git(["git", "rev-parse", "HEAD"]).stdout.strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        pass  # installed without a repository, or without git
    return found
