"""Laws in a config: by which name they go, as JSON, and how configs of before named them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from lgrpo.config.objects import find_object, loaded_object, object_name
from lgrpo.errors import UserError
from lgrpo.latent.law import Law
from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gumbel import Gumbel

_PATH = "rollout.latent.law"
KIND = "class"
"""Key of the import path in a law's JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foreign(Law):
    """A law that a config names and that this process has not loaded: its name and settings. Reading a config runs no code."""

    name: str
    """Its import path."""
    settings: str
    """Its settings, as JSON."""

    def draw(self, *args: Any, **settings: Any) -> Any:
        raise UserError(
            f"{_PATH}: the law {self.name} is not loaded; name it with --{_PATH} {self.name}, or use an experiment that imports it"
        )


def find_law(name: str, path: str) -> type[Law]:
    """The class that `name` says: a file of lgrpo/latent/laws, module:Class or file.py:Class. Errors: UserError that begins with `path`."""
    return _checked(find_object(name, f"{path}: law", short="lgrpo.latent.laws"), name, path)


def _checked(found: Any, name: str, path: str) -> type[Law]:
    if not (isinstance(found, type) and issubclass(found, Law) and dataclasses.is_dataclass(found)):
        raise UserError(f"{path}: {name} is no law; derive a frozen dataclass from lgrpo.latent.law.Law")
    if found is Law:
        raise UserError(f"{path}: {name} is the base of all laws; give one that says how a step is drawn")
    return found


def law_name(law: Law) -> str:
    """What find_law finds it by."""
    return law.name if isinstance(law, Foreign) else object_name(type(law))


def law_to_json(law: Law, fields: dict[str, Any]) -> dict[str, Any]:
    """fields: those of the law as JSON."""
    return {KIND: law_name(law)} | (json.loads(law.settings) if isinstance(law, Foreign) else fields)


def law_class(data: Mapping[str, Any], path: str) -> tuple[type[Law], dict[str, Any]]:
    """The class that a law's JSON names, and its fields. One that is not loaded is Foreign. Errors: UserError when there is no such law."""
    if not isinstance(data.get(KIND), str):
        raise UserError(f"{path}: {KIND} missing, which says what law it is")
    fields = {name: value for name, value in data.items() if name != KIND}
    try:
        found = loaded_object(data[KIND])
    except (AttributeError, ImportError) as error:
        raise UserError(f"{path}: {data[KIND]} is no law of this version ({error})") from error
    if found is None:
        return Foreign, {"name": data[KIND], "settings": json.dumps(fields, sort_keys=True)}
    return _checked(found, data[KIND], path), fields


def with_law(latent: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of rollout.latent, also of a version before laws had classes: their settings stood beside k and tau."""
    data = dict(latent)
    if "density" not in data or "law" in data:
        return data
    settings = {field.name: data.pop(field.name) for field in dataclasses.fields(Gumbel) if field.name in data}
    if settings["density"] == "exact":
        return data | {"law": {KIND: law_name(Exact())}}
    return data | {"law": {KIND: law_name(Gumbel())} | settings | {"density": settings["density"].removeprefix("gumbel_")}}
