"""What import-hf wrote about a model, for experiments of one's own: model=imported("runs/smol"), data=imported_data("runs/smol", max_prompt=128)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from lgrpo.config import DataConfig, ExperimentConfig, ModelConfig
from lgrpo.config.overrides import from_json
from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.storage import PathLike


def _saved(workdir: PathLike) -> ExperimentConfig:
    file = storage.place(workdir) / "config.json"
    mend = f"make it with: python -m lgrpo import-hf SOURCE --workdir {workdir}"
    try:
        raw = json.loads(storage.text_of(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {mend}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("config"), dict):
        raise UserError(f"{file}: not the settings of a workdir, but of a Hugging Face model perhaps; {mend}")
    return from_json(raw["config"])


def imported(workdir: PathLike, **changes: Any) -> ModelConfig:
    """The model in a workdir (of import-hf or of a run), changed: imported("runs/smol", param_dtype="float32"). A path counts from the folder that the
    command runs in. Errors: UserError when there is none."""
    return dataclasses.replace(_saved(workdir).model, **changes)


def imported_data(workdir: PathLike, **changes: Any) -> DataConfig:
    """Tokenizer, end tokens and template that belong to the model in a workdir, and what `changes` says of the data. Errors: UserError."""
    saved = _saved(workdir).data
    names = ("tokenizer", "template", "think_start", "think_end", "think_end_id", "eos", "eos_id", "more_eos", "more_eos_ids")
    return DataConfig(**({name: getattr(saved, name) for name in names} | changes))
