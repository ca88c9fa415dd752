"""Laws in a config: by which name they go, as JSON, and how configs of before named them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lgrpo.config.objects import find_object, object_name
from lgrpo.errors import UserError
from lgrpo.latent.law import Law
from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gumbel import Gumbel

KIND = "class"
"""Key of the import path in a law's JSON."""


def find_law(name: str, path: str) -> type[Law]:
    """The class that `name` says: a file of lgrpo/latent/laws, module:Class or file.py:Class. Errors: UserError that begins with `path`."""
    found = find_object(name, f"{path}: law", short="lgrpo.latent.laws")
    if not (isinstance(found, type) and issubclass(found, Law) and dataclasses.is_dataclass(found)):
        raise UserError(f"{path}: {name} is no law; derive a frozen dataclass from lgrpo.latent.law.Law")
    if found is Law:
        raise UserError(f"{path}: {name} is the base of all laws; give one that says how a step is drawn")
    return found


def law_name(law: Law) -> str:
    """What find_law finds it by."""
    return object_name(type(law))


def with_law(latent: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of rollout.latent, also of a version before laws had classes: their settings stood beside k and tau."""
    data = dict(latent)
    if "density" not in data or "law" in data:
        return data
    density = data["density"]
    names = [] if density == "exact" else [field.name for field in dataclasses.fields(Gumbel)]
    law = {KIND: law_name(Exact() if density == "exact" else Gumbel())} | {n: data[n] for n in names if n in data}
    if density != "exact":
        law["density"] = density.removeprefix("gumbel_")
    gone = {field.name for field in dataclasses.fields(Gumbel)}
    return {n: value for n, value in data.items() if n not in gone} | {"law": law}
