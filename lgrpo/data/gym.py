"""Problems of the package reasoning-gym as a folder of JSON lines, for data.source=jsonl: python -m lgrpo.data.gym --help

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
from typing import Any, Literal

from lgrpo.data.equations import extract
from lgrpo.data.registry import normal_text
from lgrpo.errors import UserError

_CHUNK = 4096  # problems of one generator
_SPAN = 10**7  # generator seeds of one split: problem i of a generator with seed s is drawn from s + i
_SPLITS = ("test", "held_out", "valid", "train")  # in this order, so that a repeated problem is dropped from training
_WITH_CHAINS = "gsm_symbolic"
_TAIL = " Give the result as your final answer. Do not include units."


@dataclasses.dataclass(frozen=True)
class Gym:
    """What to write."""

    out: str
    """Folder to write; one that holds the same data is left as it is."""
    dataset: str = _WITH_CHAINS
    """Name in reasoning-gym; any with answers in text."""
    params: str = "{}"
    """Further settings of that data set, as a JSON object."""
    seed: int = 0
    """Of all splits; other seeds give other problems."""
    train: int = 10000
    """Records; the same for the others."""
    valid: int = 500
    test: int = 1000
    chains: Literal["none", "prose", "equations"] = "none"
    """Chain of thought, of gsm_symbolic only: the worked solution, or its equations, checked (lgrpo/data/equations.py)."""
    steps: tuple[int, int] = (1, 99)
    """Fewest and most equations of a chain (chains=equations)."""
    templates: tuple[int, ...] = ()
    """Templates of gsm_symbolic to train on; empty: all but those held out."""
    held_out: int = 0
    """Templates of gsm_symbolic that only the split held_out has, as many records as test."""


def _check(cfg: Gym) -> dict[str, Any]:
    """The data set's own settings. Errors: UserError."""
    try:
        params = json.loads(cfg.params)
    except ValueError as error:
        raise UserError(f"--params: not JSON ({error}); give an object such as '{{\"min_terms\": 2}}'") from error
    if not isinstance(params, dict) or {"seed", "size"} & set(params):
        raise UserError("--params: give a JSON object without `seed` and `size`, which are options of their own")
    if min(cfg.train, cfg.valid, cfg.test) < 1 or cfg.seed < 0 or cfg.held_out < 0:
        raise UserError("--train, --valid and --test must be 1 or more, --seed and --held-out 0 or more")
    if not 1 <= cfg.steps[0] <= cfg.steps[1]:
        raise UserError(f"--steps {cfg.steps[0]} {cfg.steps[1]}: give the fewest, 1 or more, and then the most equations")
    if cfg.dataset != _WITH_CHAINS and (cfg.chains != "none" or cfg.templates or cfg.held_out):
        raise UserError(f"--dataset {cfg.dataset}: only {_WITH_CHAINS} has chains and templates; leave these options out")
    return params


def _chunk(cfg: Gym, params: dict[str, Any], seed: int) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError("reasoning-gym is not installed; pip install 'lgrpo[gym]'") from error
    try:
        return reasoning_gym.create_dataset(cfg.dataset, seed=seed, size=_CHUNK, **params)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--dataset {cfg.dataset} --params {cfg.params}: refused by reasoning-gym ({error})") from error


def _templates(cfg: Gym) -> tuple[frozenset[int], frozenset[int]]:
    """(templates of training, held out). Errors: UserError for a template that does not exist or is wanted twice."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok

    if unknown := set(cfg.templates) - set(tasks_ok):
        raise UserError(f"--templates: no template {min(unknown)}; there are {', '.join(map(str, tasks_ok))}")
    others = [t for t in tasks_ok if t not in cfg.templates]
    if cfg.held_out + (not cfg.templates) > len(others):
        raise UserError(f"--held-out {cfg.held_out}: only {len(others)} templates are not in training; hold out fewer")
    held = frozenset(random.Random(0).sample(others, cfg.held_out))
    return frozenset(cfg.templates or set(others) - held), held


def _record(cfg: Gym, item: dict[str, Any]) -> tuple[dict[str, str], str]:
    """(problem, cot, answer, and beside equations the solution that they are from; why the record is dropped, or "")."""
    answer = item["answer"]
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f"--dataset {cfg.dataset}: an answer is {answer!r}, not text, and cannot be graded; choose another data set")
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


def _items(cfg: Gym, params: dict[str, Any], split: str, most: int) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Problems with their template (None where the data set has none), `most` at most."""
    base = (cfg.seed * len(_SPLITS) + _SPLITS.index(split)) * _SPAN
    for start in range(0, min(most, _SPAN), _CHUNK):
        chunk = _chunk(cfg, params, base + start)
        templates = getattr(chunk, "task_indices", None) if cfg.dataset == _WITH_CHAINS else None
        for i in range(_CHUNK):
            if templates is None:
                yield chunk[i], None
            else:
                yield chunk[i], templates[i]


def _split(
    cfg: Gym, params: dict[str, Any], split: str, count: int, only: frozenset[int], seen: set[str]
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
        f"--{split.replace('_', '-')}: only {len(out)} of {count} records found (dropped: {dict(dropped)}); ask for fewer, or widen --steps or --templates"
    )


def write(cfg: Gym) -> dict[str, Any]:
    """Writes the folder unless it is there, whole or not at all; returns what dataset.json holds. Errors: UserError."""
    params, out = _check(cfg), pathlib.Path(cfg.out).expanduser()
    settings = json.loads(json.dumps({k: v for k, v in dataclasses.asdict(cfg).items() if k != "out"}))
    if out.exists():
        try:
            about = json.loads((out / "dataset.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{out}: exists, and its dataset.json cannot be read ({error}); choose another --out") from error
        if about.get("settings") != settings:
            raise UserError(f"{out}: holds data of other settings {about.get('settings')}; choose another --out, or remove it")
        return about
    _chunk(cfg, params, 0)
    train, held = _templates(cfg) if cfg.dataset == _WITH_CHAINS else (frozenset(), frozenset())
    about = {"settings": settings, "reasoning_gym": importlib.metadata.version("reasoning-gym"), "splits": {}}
    about |= {"templates": sorted(train), "held_out_templates": sorted(held)}
    seen: set[str] = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for split in _SPLITS:
            if split == "held_out" and not held:
                continue
            count = cfg.test if split == "held_out" else getattr(cfg, split)
            records, dropped = _split(cfg, params, split, count, held if split == "held_out" else train, seen)
            (made / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
            about["splits"][split] = {"records": len(records), "dropped": dropped}
        (made / "dataset.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        made.chmod(0o755)
        made.rename(out)
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
