"""Classes and functions of a user's own in a config: named by where they stand, found again by that name.

`module:Name` is importable; `file.py:Name` is run as an experiment is. What a file defines beside get_config() is named by that file.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lgrpo.errors import UserError

_PREFIX = "_lgrpo_"


def run_file(file: Path) -> types.ModuleType:
    """The module in a Python file that the user named: an experiment, a grid of ablations. Errors: whatever it raises."""
    name = f"{_PREFIX}{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _here_importable() -> Iterator[None]:
    """The folder that the command runs in, as `python -m` has it."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def object_name(thing: Any) -> str:
    """`module:Name` of a class or function; `file.py:Name` where its module is a file that was run."""
    module = thing.__module__
    return f"{sys.modules[module].__file__ if module.startswith(_PREFIX) else module}:{thing.__qualname__}"


def find_object(name: str, what: str, short: str = "") -> Any:
    """Inverse of object_name. what: for messages. short: package whose modules may be named alone, each with one class that it defines.

    A file that was run already is not run again, so that its classes stay the same. Errors: UserError when there is no such thing.
    """
    place, _, inner = name.rpartition(":")
    try:
        with _here_importable():
            if place.endswith(".py"):
                file = Path(place).expanduser().resolve()
                known = sys.modules.get(f"{_PREFIX}{file.stem}")
                module = known if known is not None and known.__file__ == str(file) else run_file(file)
            elif place:
                module = importlib.import_module(place)
            else:
                module = importlib.import_module(f"{short}.{name}")
                inner = next(n for n, x in vars(module).items() if isinstance(x, type) and x.__module__ == module.__name__)
        found = module
        for part in inner.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a user's module raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        own = f" or a name in {short.replace('.', '/')}" if short else ""
        raise UserError(f"{what} {name!r}: not found ({reason}); give module:Name, file.py:Name{own}") from error
    return found
