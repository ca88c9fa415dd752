"""Files whose names come from settings or from other files, and short identities of what is in them."""

from __future__ import annotations

import hashlib
import pathlib

from lgrpo.errors import UserError
from lgrpo.runs.storage import Place


def inside(folder: Place, name: str, what: str) -> Place:
    """folder/name. Links are followed (data often lies elsewhere), names are not. Errors: UserError for a name that leads out of the folder."""
    path = pathlib.PurePath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(f"{what}: {name!r} leads out of {folder}; give the name of something inside it")
    return folder / path


def digest(data: bytes) -> str:
    """Short SHA-256, for identities in messages."""
    return hashlib.sha256(data).hexdigest()[:16]
