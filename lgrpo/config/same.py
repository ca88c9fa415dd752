"""What may differ between a run and its continuation, and between weights and the model that takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lgrpo.config import ExperimentConfig, ModelConfig
from lgrpo.config.overrides import diff
from lgrpo.errors import UserError

# A run may be continued with other values here; any other change would make it another experiment.
RESUME_MAY_CHANGE = (
    *("name", "train.num_steps", "train.log_every", "train.diagnostics", "train.compilation_cache", "train.start_timeout"),
    *("train.profile_steps", "logging", "checkpoint", "evaluation", "mesh", "sft.packing"),
)


def check_resume(old: ExperimentConfig, new: ExperimentConfig, also: Sequence[str] = ()) -> None:
    """Refuse to continue a run as another experiment. Errors: UserError with the diff of the fields outside RESUME_MAY_CHANGE and `also`."""
    # a cosine ends with the run
    allowed = [a for a in (*RESUME_MAY_CHANGE, *also) if a != "train.num_steps" or old.optim.schedule == "constant"]
    changed = {p: v for p, v in diff(old, new).items() if not any(p == a or p.startswith(a + ".") for a in allowed)}
    if changed:
        lines = "".join(f"\n  {path}: {a!r} in the checkpoint, {b!r} now" for path, (a, b) in changed.items())
        raise UserError(f"resume: {len(changed)} setting(s) differ from the checkpoint; restore them or use a new --workdir:{lines}")


def check_same_model(saved: ModelConfig, wanted: ModelConfig, where: str) -> None:
    """Refuse weights of another model, also where all shapes agree (rope_theta, rms_eps). Errors: UserError naming every difference."""
    free = ("dtype", "param_dtype", "remat", "attention", "init_scale")  # how it is computed, not what
    names = [f.name for f in dataclasses.fields(ModelConfig) if f.name not in free]
    changed = [
        f"model.{n}: {getattr(saved, n)!r} there, {getattr(wanted, n)!r} here" for n in names if getattr(saved, n) != getattr(wanted, n)
    ]
    if changed:
        mend = f"use its settings (in an experiment's file: model=imported({where!r}) of lgrpo.config.imported)"
        raise UserError(f"{where} holds another model ({'; '.join(changed)}); {mend}")
