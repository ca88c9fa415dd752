"""Classes and functions of a user's own in a config: named by where they stand, found again by that name.

`module:Name` is importable; `file.py:Name` is run as an experiment is. What a file defines beside get_config() is named by that file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lgrpo.errors import UserError

_PREFIX = "_lgrpo_"


_folders: set[Path] = set()  # folders of files that were run in this process


@contextlib.contextmanager
def importable(path: Path) -> Iterator[None]:
    """Let a file import its neighbours by name, and as `experiments.<name>` wherever the command runs."""
    root = next((str(p.parent) for p in path.parents if p.name == "experiments"), str(Path.cwd()))
    here = str(path.parent)
    for neighbour in path.parent.glob("*.py"):
        known = getattr(sys.modules.get(neighbour.stem), "__file__", None)
        if known and Path(known).is_file() and Path(known) != neighbour and Path(known).parent in _folders:
            del sys.modules[neighbour.stem]  # the module of that name beside another file
    _folders.add(path.parent)
    sys.path[:0] = [root, here]
    try:
        yield
    finally:
        for entry in (root, here):
            with contextlib.suppress(ValueError):
                sys.path.remove(entry)


def run_file(file: Path) -> types.ModuleType:
    """The module in a Python file that the user named: an experiment, a grid of ablations, a law. It may import its neighbours. Errors: whatever it
    raises."""
    file = file.resolve()
    name = f"{_PREFIX}{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # a .py file always has them
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    with importable(file):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def on_path(*folders: Path) -> Iterator[None]:
    """Modules in these folders can be imported, the first folder's before the others'."""
    entries = [str(folder) for folder in folders]
    sys.path[:0] = entries
    try:
        yield
    finally:
        for entry in entries:
            with contextlib.suppress(ValueError):
                sys.path.remove(entry)


def object_name(thing: Any) -> str:
    """`module:Name` of a class or function; `file.py:Name` where its module is a file that was run, or one beside an experiment."""
    name = thing.__module__
    file = Path(getattr(sys.modules[name], "__file__", None) or name)
    beside = "." not in name and file.suffix == ".py" and str(file.parent) not in (*sys.path, str(Path.cwd()))
    return f"{file if beside or name.startswith(_PREFIX) else name}:{thing.__qualname__}"


def name_of(given: Any, what: str) -> str:
    """A setting that names a function: the name as it is, or that of the function itself. Errors: UserError for one that cannot be found again."""
    if not callable(given):
        return given
    name = object_name(given)
    if "<" in name:
        raise UserError(f"{what}: {name} has no name of its own; define the function at the top of a file")
    return name


def file_digest(name: str) -> str:
    """SHA-256 of the file in which something stands that find_object found; "" where there is no file."""
    place = name.rpartition(":")[0]
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    path = Path(file).expanduser() if file else None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""


def _loaded(file: str) -> types.ModuleType | None:
    """The module that was made from a file, if any."""
    return next((module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == file), None)


def loaded_object(name: str) -> Any | None:
    """What object_name called `name`, if that can be had without running anything of the user's: lgrpo's own, or what this process has loaded.

    What comes from a checkpoint is looked up by this only. Errors: AttributeError, ImportError when lgrpo or the loaded module has no such thing.
    """
    place, _, inner = name.rpartition(":")
    module: types.ModuleType | None
    if place.startswith("lgrpo."):
        module = importlib.import_module(place)
    elif place.endswith(".py"):
        module = _loaded(place)
    else:
        module = sys.modules.get(place)
    return None if module is None else _inside(module, inner)


def _inside(module: types.ModuleType, name: str) -> Any:
    found = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def find_object(name: str, what: str, short: str = "") -> Any:
    """Inverse of object_name, for names that the user gives: runs the file, imports the module. A file that was run already is not run again, so
    that its classes stay the same.

    what: for messages. short: package whose modules may be named alone, each with one class that it defines. Errors: UserError.
    """
    place, _, inner = name.rpartition(":")
    try:
        with on_path(Path.cwd()):  # as `python -m` has it
            if place.endswith(".py"):
                file = Path(place).expanduser().resolve()
                module = _loaded(str(file)) or run_file(file)
            elif place:
                module = importlib.import_module(place)
            else:
                module = importlib.import_module(f"{short}.{name}")
                inner = next(n for n, x in vars(module).items() if isinstance(x, type) and x.__module__ == module.__name__)
        found = _inside(module, inner)
    except Exception as error:  # whatever a user's module raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        own = f" or a name in {short.replace('.', '/')}" if short else ""
        raise UserError(f"{what} {name!r}: not found ({reason}); give module:Name, file.py:Name{own}") from error
    return found
