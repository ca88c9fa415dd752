"""Problems of the package reasoning-gym, for data.source=reasoning_gym (builders/reasoning_gym), and as a folder of JSON lines, for
data.source=jsonl: python -m lgrpo.data.gym --help

    python -m lgrpo.data.gym --out data/gsm --dataset gsm_symbolic --chains equations --train 10000 --held-out 20

writes train, valid, test and, where templates are held out, held_out, each of its own range of generator seeds, and dataset.json: settings,
version of the package, templates, and how many records were dropped and why. No problem stands in two of them.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import json
import pathlib
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from lgrpo.config import GymConfig
from lgrpo.config.gym import WITH_CHAINS, complaints, parameters
from lgrpo.config.overrides import leaves_with_bounds
from lgrpo.data import files
from lgrpo.data.equations import extract
from lgrpo.data.registry import normal_text
from lgrpo.errors import UserError
from lgrpo.runs import storage

_CHUNK = 4096  # problems of one generator
_SPAN = 10**7  # generator seeds of one split: problem i of a generator with seed s is drawn from s + i
_SPLITS = ("test", "held_out", "valid", "train")  # in this order, so that a repeated problem is dropped from training
_TAIL = " Give the result as your final answer. Do not include units."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gym(GymConfig):
    """What to write."""

    out: str
    """Folder to write; one that holds the same data is left as it is."""


def settings_of(cfg: GymConfig) -> dict[str, Any]:
    """As dataset.json has them."""
    return json.loads(json.dumps({f.name: getattr(cfg, f.name) for f in dataclasses.fields(GymConfig)}))


def digest(cfg: GymConfig) -> str:
    """Short name of these settings."""
    return files.digest(json.dumps(settings_of(cfg), sort_keys=True).encode())


def _check(cfg: GymConfig) -> dict[str, Any]:
    """The data set's own settings. Errors: UserError."""
    ranges = (f"{name}={value}: {b.complaint}" for name, value, bounds in leaves_with_bounds(cfg) for b in bounds if not b.holds(value))
    if found := [*ranges, *complaints(cfg, prefix="")]:
        raise UserError(f"reasoning-gym: {'; '.join(found)}")
    return parameters(cfg) or {}


def _chunk(cfg: GymConfig, params: dict[str, Any], seed: int) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError("reasoning-gym is not installed; pip install 'lgrpo[gym]'") from error
    try:
        return reasoning_gym.create_dataset(cfg.dataset, seed=seed, size=_CHUNK, **params)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"reasoning-gym: refuses dataset={cfg.dataset!r} with params={cfg.params!r} ({error}); mend one of them") from error


def _templates(cfg: GymConfig) -> tuple[frozenset[int], frozenset[int]]:
    """(templates of training, held out). Errors: UserError for a template that does not exist or is wanted twice."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok

    if unknown := set(cfg.templates) - set(tasks_ok):
        raise UserError(f"reasoning-gym: templates: no template {min(unknown)}; there are {', '.join(map(str, tasks_ok))}")
    others = [t for t in tasks_ok if t not in cfg.templates]
    if cfg.held_out + (not cfg.templates) > len(others):
        raise UserError(f"reasoning-gym: held_out={cfg.held_out}: only {len(others)} templates are not in training; hold out fewer")
    held = frozenset(random.Random(0).sample(others, cfg.held_out))
    return frozenset(cfg.templates or set(others) - held), held


def _record(cfg: GymConfig, item: dict[str, Any]) -> tuple[dict[str, str], str]:
    """(problem, cot, answer, and beside equations the solution that they are from; why the record is dropped, or "")."""
    answer = item["answer"]
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(
            f"reasoning-gym: dataset={cfg.dataset!r}: an answer is {answer!r}, not text, and cannot be graded; choose another data set"
        )
    problem, cot, reason = item["question"].removesuffix(_TAIL), "", ""
    if cfg.chains != "none":
        cot = solution = item["metadata"]["answer_cot"].rpartition("####")[0].strip()
        reason = "" if cot else "no chain"
    if cfg.chains == "equations":
        found, reason = extract(problem, solution, answer)
        cot = " ".join(f"<<{equation}>>" for equation in found)
        if found and not cfg.steps[0] <= len(found) <= cfg.steps[1]:
            reason = "steps"
    prose = {"solution": solution} if cfg.chains == "equations" else {}
    return {"problem": problem, "cot": cot, "answer": answer} | prose, reason


def _items(cfg: GymConfig, params: dict[str, Any], split: str, most: int) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Problems with their template (None where the data set has none), `most` at most."""
    base = (cfg.seed * len(_SPLITS) + _SPLITS.index(split)) * _SPAN
    for start in range(0, min(most, _SPAN), _CHUNK):
        chunk = _chunk(cfg, params, base + start)
        templates = getattr(chunk, "task_indices", None) if cfg.dataset == WITH_CHAINS else None
        for i in range(_CHUNK):
            if templates is None:
                yield chunk[i], None
            else:
                yield chunk[i], templates[i]


def _split(
    cfg: GymConfig, params: dict[str, Any], split: str, count: int, only: frozenset[int], seen: set[str]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(records, dropped by reason) of a split. Adds to `seen`. Errors: UserError where too few problems remain."""
    out: list[dict[str, Any]] = []
    dropped: collections.Counter[str] = collections.Counter()
    for item, template in _items(cfg, params, split, 200 * count + 4 * _CHUNK):
        if only and template not in only:
            continue
        record, reason = _record(cfg, item)
        text = normal_text(record["problem"])
        reason = reason or ("repeated" if text in seen else "")
        if reason:
            dropped[reason] += 1
            continue
        seen.add(text)
        out.append(record if template is None else record | {"template": template})
        if len(out) == count:
            return out, dict(dropped)
    raise UserError(
        f"reasoning-gym: {split}: only {len(out)} of {count} records found (dropped: {dict(dropped)}); ask for fewer, or widen steps or templates"
    )


def generate(cfg: GymConfig) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """(what dataset.json holds, split -> records). Errors: UserError."""
    params = _check(cfg)
    _chunk(cfg, params, 0)
    train, held = _templates(cfg) if cfg.dataset == WITH_CHAINS else (frozenset(), frozenset())
    about = {"settings": settings_of(cfg), "reasoning_gym": importlib.metadata.version("reasoning-gym"), "splits": {}}
    about |= {"templates": sorted(train), "held_out_templates": sorted(held)}
    splits: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for split in _SPLITS:
        if split == "held_out" and not held:
            continue
        count = cfg.test if split == "held_out" else getattr(cfg, split)
        splits[split], dropped = _split(cfg, params, split, count, held if split == "held_out" else train, seen)
        about["splits"][split] = {"records": count, "dropped": dropped}
    return about, splits


def write(cfg: Gym) -> dict[str, Any]:
    """Writes the folder unless it is there, whole or not at all; returns what dataset.json holds. Errors: UserError."""
    if storage.remote(cfg.out):
        raise UserError(
            f"{cfg.out}: give a folder of this machine; what a run prepares itself is kept in data.data_dir, which may lie in a bucket"
        )
    out = pathlib.Path(cfg.out).expanduser()
    _check(cfg)
    if out.exists():
        try:
            about = json.loads((out / "dataset.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{out}: exists, and its dataset.json cannot be read ({error}); choose another folder") from error
        if about.get("settings") != settings_of(cfg):
            raise UserError(f"{out}: holds data of other settings {about.get('settings')}; choose another folder, or remove it")
        return about
    about, splits = generate(cfg)
    out.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for split, records in splits.items():
            (made / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        (made / "dataset.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        made.chmod(0o755)
        try:
            made.rename(out)
        except OSError:  # another process was faster
            if not out.exists():
                raise
            return write(cfg)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return about


def main() -> int:
    """The command."""
    import tyro

    try:
        about = write(tyro.cli(Gym, description=__doc__))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(about["splits"], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
