"""Experiments from files, diffs of configs, command-line overrides and JSON: every way into and out of an ExperimentConfig.

All of them are strict: an unknown field, a missing field and a value of the wrong type are a UserError that names the path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import math
import os
import re
import traceback
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lgrpo.bounds import Bound
from lgrpo.config import ExperimentConfig, GymConfig
from lgrpo.config.laws import KIND, find_law, law_class, law_to_json, with_law
from lgrpo.config.objects import importable, run_file
from lgrpo.errors import UserError
from lgrpo.latent.law import Law

_LATENT, _LAW = "rollout.latent", "rollout.latent.law"
ADDED = {
    "model.attention": "plain",
    "rollout.cache_parts": 1,
    "checkpoint.rollback": None,
    "train.start_timeout": 300.0,
    "train.profile_steps": None,
    "logging.alarms.uninformative_steps": 20,
    "logging.alarms.nan_above": 0.0,
    "sft.packing": False,
    "sft.answer": "final",
    "data.reward": "correct",
    "algo.advantage": "group",
    "algo.baseline": "mean",
    "algo.scale": "std",
    "algo.ratio": "token",
    "data.instruction": None,
    "data.few_shot": "",
    "evaluation.thinking": True,
    "evaluation.arms": False,
    "evaluation.curve": (),
    "evaluation.answer_budget": 8,
    "data.more_eos": (),
    "data.more_eos_ids": (),
    "logging.wandb": False,
    "logging.trackio": False,
    "logging.project": "lgrpo",
    "logging.samples_every": 0,
    "logging.samples": 1,
} | {f"algo.lora.{name}": value for name, value in (("rank", 0), ("alpha", 128.0), ("dropout", 0.0))}
ADDED |= {f"data.gym.{field.name}": field.default for field in dataclasses.fields(GymConfig)}
"""Fields that checkpoints of earlier versions lack, and the value that says what those versions did. A new field gets a line here."""
_NO_REFILL = "slot refill is not there: the plain loop gives the same samples in less time; leave the setting out"
REMOVED = dict.fromkeys(("rollout.decode", "rollout.lanes", "rollout.chunk"), _NO_REFILL)
"""Fields of earlier versions, and what to do without them. In stored configs, of runs that go on the same, they are passed over."""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Field name -> resolved type, in the order of the fields."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; the type itself otherwise."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _dataclass_of(hint: Any) -> type | None:
    """The dataclass among a hint's alternatives, if any."""
    return next((m for m in _members(hint) if dataclasses.is_dataclass(m)), None)


def describe(hint: Any) -> str:
    """A type in words, for messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if len(_members(hint)) > 1:
        return " or ".join(describe(m) for m in _members(hint))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return "a tuple (" + ", ".join("..." if a is ... else describe(a) for a in args) + ")"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _coerce(value: Any, hint: Any, path: str, *, from_lists: bool) -> Any:
    """`value` as a `hint`. Ints become floats where a float is wanted; nothing else is converted (lists to tuples only from JSON)."""
    for member in _members(hint):
        origin, args = typing.get_origin(member), typing.get_args(member)
        if dataclasses.is_dataclass(member):
            if isinstance(value, member):
                return _check_tree(value, path)
            if member is Law and isinstance(value, str):
                return find_law(value, path)()
            if isinstance(value, Mapping):
                return _build(member, value, path)
        elif member is type(None):
            if value is None:
                return None
        elif origin is Literal:
            if any(type(value) is type(a) and value == a for a in args):
                return value
        elif origin is tuple:
            if isinstance(value, tuple) or (from_lists and isinstance(value, list)):
                items = args[:1] * len(value) if len(args) == 2 and args[1] is ... else args
                if len(items) == len(value):
                    return tuple(
                        _coerce(v, t, f"{path}[{i}]", from_lists=from_lists) for i, (v, t) in enumerate(zip(value, items, strict=True))
                    )
        elif member is float and type(value) in (int, float):
            if not math.isfinite(value):
                raise UserError(f"{path}: {value!r} is not a finite number; settings must survive JSON")
            return float(value)
        elif type(value) is member:  # exact, so that True is no int
            return value
    raise UserError(f"{path}: {value!r} is a {type(value).__name__}, but it must be {describe(hint)}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _check_tree(cfg: Any, path: str = "") -> Any:
    """`cfg` with every leaf checked against its annotation."""
    hints = _hints(type(cfg))
    return dataclasses.replace(cfg, **{n: _coerce(getattr(cfg, n), h, _join(path, n), from_lists=False) for n, h in hints.items()})


def _was_added(path: str) -> bool:
    """A field, or a block of them, that earlier versions lack."""
    return any(name == path or name.startswith(path + ".") for name in ADDED)


def _build(cls: type, data: Mapping[str, Any], path: str) -> Any:
    """A dataclass from a mapping that has exactly its fields; a law's also names its class."""
    if cls is Law:
        cls, data = law_class(data, path)
    if path == _LATENT:
        data = with_law(data)
    hints = _hints(cls)
    data = {n: value for n, value in data.items() if _join(path, n) not in REMOVED}
    data = {n: ADDED.get(_join(path, n), {}) for n in hints if n not in data and _was_added(_join(path, n))} | data
    for name in data:
        if name not in hints:
            raise _unknown(_join(path, str(name)), [_join(path, n) for n in hints])
    missing = [_join(path, n) for n in hints if n not in data]
    if missing:
        raise UserError(f"config: {', '.join(missing)} missing; it was edited by hand, or is of an early version: read it with that one")
    return cls(**{n: _coerce(data[n], h, _join(path, n), from_lists=True) for n, h in hints.items()})


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The most similar of `known`, comparing whole paths first and then last components."""
    if hit := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        # A right leaf under a wrong parent (algo.k) beats a similar path when the leaf names exactly one field.
        same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
        return same_leaf[0] if len(same_leaf) == 1 else hit[0]
    leaves = {k.rsplit(".", 1)[-1]: k for k in known}
    hit = difflib.get_close_matches(name.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.7)
    return leaves[hit[0]] if hit else None


def _unknown(path: str, known: Sequence[str], what: str = "config field") -> UserError:
    if path in REMOVED:
        return UserError(f"{path}: {REMOVED[path]}")
    near = _nearest(path, known)
    return UserError(f"{path}: no such {what}; " + (f"did you mean {near}?" if near else "see `python -m lgrpo train EXPERIMENT --help`"))


def field_paths(cls: type = ExperimentConfig, prefix: str = "", law: type[Law] = Law) -> list[str]:
    """Dotted path of every leaf, those inside optional blocks (model.rope_scaling) and of the law included, and of the law itself."""
    paths = []
    for name, hint in _hints(cls).items():
        inner = _dataclass_of(hint)
        if inner is None or inner is Law or len(_members(hint)) > 1:  # an optional block is itself a value: None
            paths.append(prefix + name)
        if inner is not None:
            paths += field_paths(law if inner is Law else inner, f"{prefix}{name}.", law)
    return paths


def _set(cfg: Any, cls: type, parts: Sequence[str], value: Any, path: str, law: type[Law]) -> Any:
    """`cfg` (an instance of cls, or None where an optional block is still unset) with one leaf replaced."""
    name, rest = parts[0], parts[1:]
    hint = _hints(cls).get(name)
    if hint is None or (rest and _dataclass_of(hint) is None):
        raise _unknown(path, field_paths(law=law), f"setting of the law {law.__name__}" if path.startswith(_LAW + ".") else "config field")
    cfg = cls() if cfg is None else cfg
    inner = law if _dataclass_of(hint) is Law else _dataclass_of(hint)
    new = _set(getattr(cfg, name), inner, rest, value, path, law) if rest else _coerce(value, hint, path, from_lists=False)
    return dataclasses.replace(cfg, **{name: new})


def apply_diff(cfg: ExperimentConfig, changes: Mapping[str, Any]) -> ExperimentConfig:
    """`cfg` with dotted paths replaced, e.g. {"rollout.latent.law.one_sided": False}. A law is given as one, or by name.

    A field of an optional block that is None ("model.rope_scaling.factor") first sets the block to its defaults.
    Errors: UserError for an unknown path (with the nearest valid one) and for a value of the wrong type.
    """
    for path, value in changes.items():
        cfg = _set(cfg, ExperimentConfig, path.split("."), value, path, type(cfg.rollout.latent.law))
    return cfg


def leaves_with_bounds(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Any, list[Bound]]]:
    """(dotted path, value, bounds beside the field) of every leaf."""
    hints = typing.get_type_hints(type(cfg), include_extras=True)
    for name in _hints(type(cfg)):
        value = getattr(cfg, name)
        if dataclasses.is_dataclass(value):
            yield from leaves_with_bounds(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, [b for b in getattr(hints[name], "__metadata__", ()) if isinstance(b, Bound)]


def _leaves(cfg: Any) -> Iterator[tuple[str, Any]]:
    return ((path, value) for path, value, _ in leaves_with_bounds(cfg))


def diff(old: ExperimentConfig, new: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old value, new value) where they differ. A block that only one side has appears as a whole, as a dict;
    so do laws of different classes, as they are."""

    def walk(a: Any, b: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
        for name in _hints(type(a)):
            x, y, path = getattr(a, name), getattr(b, name), prefix + name
            if dataclasses.is_dataclass(x) and type(x) is type(y):
                yield from walk(x, y, path + ".")
            elif x != y:
                yield path, tuple(dataclasses.asdict(v) if dataclasses.is_dataclass(v) and not isinstance(v, Law) else v for v in (x, y))

    return dict(walk(old, new, ""))


def to_json(cfg: ExperimentConfig) -> dict[str, Any]:
    """The tree as nested dicts of JSON values (tuples become lists)."""

    def plain(x: Any) -> Any:
        if dataclasses.is_dataclass(x):
            fields = {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
            return law_to_json(x, fields) if isinstance(x, Law) else fields
        return list(x) if isinstance(x, tuple) else x

    return plain(cfg)


def from_json(data: Mapping[str, Any], *, trusted: bool = False) -> ExperimentConfig:
    """Inverse of to_json. Errors: UserError for unknown or missing fields and for values of the wrong type.

    trusted: the JSON is the user's own, so the file of a law that it names may be run. Else such a law is Foreign unless it is loaded already.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"config: expected a JSON object, got {type(data).__name__}")
    if trusted:
        find_law(data["rollout"]["latent"]["law"][KIND], _LAW)
    return _build(ExperimentConfig, data, "")


def load_experiment(path: str | os.PathLike[str], stage: str | None = None) -> ExperimentConfig:
    """The config that an experiment file's get_config() returns, every leaf checked. Errors: UserError.

    stage: given to a get_config(stage=...) that sets the stages of Latent-SFT apart; one without that argument has one config for all.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"{path}: no such experiment file; give the path of a Python file with get_config(), e.g. experiments/x.py")
    try:
        with importable(file):
            module = run_file(file)
            if not callable(getattr(module, "get_config", None)):
                raise UserError("it has no function get_config(); add one that returns an ExperimentConfig")
            apart = stage is not None and "stage" in inspect.signature(module.get_config).parameters
            cfg = module.get_config(stage=stage) if apart else module.get_config()
        if not isinstance(cfg, ExperimentConfig):
            raise UserError(f"get_config() returned a {type(cfg).__name__}, not an ExperimentConfig")
        return _check_tree(cfg)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        gone = next((f" ({path}: {why})" for path, why in REMOVED.items() if str(error).endswith(f"argument '{path.split('.')[-1]}'")), "")
        raise UserError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}{gone}") from error


# -- command line -------------------------------------------------------------------------------------------------------------------------


def _optional_blocks() -> dict[str, type]:
    return {n: _dataclass_of(h) for n in field_paths() if _dataclass_of(h := _hint_at(n)) not in (None, Law)}


def _hint_at(path: str) -> Any:
    cls: Any = ExperimentConfig
    for part in path.split("."):
        hint = _hints(cls)[part]
        cls = _dataclass_of(hint)
    return hint


def _preset_blocks(cfg: ExperimentConfig, argv: Sequence[str]) -> tuple[ExperimentConfig, list[str]]:
    """Handle what tyro would make subcommands: the law (`--rollout.latent.law exact`), optional blocks (`--model.rope-scaling None`), and options of a
    block that is None."""
    blocks = _optional_blocks()
    rest, items = [], list(argv)
    while items:
        token = items.pop(0)
        option, _, attached = token.partition("=")
        path = option[2:].replace("-", "_") if option.startswith("--") else ""
        if path == _LAW:
            cfg = apply_diff(cfg, {path: attached if "=" in token else (items.pop(0) if items else "")})
            continue
        if path in blocks:
            value = attached if "=" in token else (items.pop(0) if items else "")
            if value != "None":
                raise UserError(
                    f"--{path} {value}: only None can be given; set its fields instead, e.g. --{path}.{next(iter(_hints(blocks[path])))}"
                )
            cfg = apply_diff(cfg, {path: None})
            continue
        known = field_paths(law=type(cfg.rollout.latent.law))
        if path in REMOVED:
            raise _unknown(path, known)
        if path and path not in known and path != "help":
            near = _nearest(path, sorted(known))
            mend = f"did you mean --{near.replace('_', '-')}?" if near else "see --help for all options"
            raise UserError(f"{option}: no such option; {mend}")
        block = path.rpartition(".")[0]
        if block in blocks and dict(_leaves(cfg)).get(block, 0) is None:
            cfg = apply_diff(cfg, {block: blocks[block]()})
        rest.append(token)
    return cfg, rest


def _plain_error(text: str) -> str:
    """What tyro says in its box, as one line without the box, the help text and the footer."""
    rows = [re.sub(r"[│╭╮╰╯|+]", " ", line).strip() for line in text.splitlines()]
    said: list[str] = []
    for row in rows[1:]:  # the first row is the title
        if re.fullmatch(r"[─\-\s]+", row) and row:
            break
        said.append(row)
    # A union's complaint lists every alternative that was tried; its first half says it all.
    return " ".join(" ".join(said).split()).partition(" Got errors")[0] or " ".join(text.split())


def parse_overrides(cfg: ExperimentConfig, argv: Sequence[str], prog: str = "lgrpo") -> ExperimentConfig:
    """`cfg` changed by command-line options named after its fields; `-` and `_` are alike, booleans are given as True or False.

    Errors: UserError for unknown options (with the nearest valid one), missing or bad values. --help prints and raises SystemExit(0).
    """
    cfg, argv = _preset_blocks(cfg, argv)
    import tyro  # here, because only the command line needs it, and a mistyped name does not

    off = [p for p in _optional_blocks() if dict(_leaves(cfg)).get(p, 0) is None]
    notes = "".join(
        f" {p} is None; any of " + ", ".join(f"--{p}.{n}".replace("_", "-") for n in _hints(_optional_blocks()[p])) + " turns it on."
        for p in off
    )
    law = type(cfg.rollout.latent.law).__name__
    notes += f" --rollout.latent.law NAME takes another law than {law}: a file of lgrpo/latent/laws, module:Class or file.py:Class."
    about = {
        "prog": prog,
        "description": f"Settings of {cfg.name!r}.{notes}",
        "config": (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
    }
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            new = tyro.cli(ExperimentConfig, args=list(argv), default=cfg, **about)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_plain_error(errors.getvalue())} (see --help)") from None
    return _check_tree(new)
