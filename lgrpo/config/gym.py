"""Settings of the problems that reasoning-gym makes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Literal

from lgrpo.bounds import Count, Natural

WITH_CHAINS = "gsm_symbolic"
"""The data set of reasoning-gym that has worked solutions, and templates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GymConfig:
    """Problems of reasoning-gym (data.source=reasoning_gym)."""

    dataset: str = WITH_CHAINS
    """Name in reasoning-gym; any with answers in text."""
    params: str = "{}"
    """Further settings of that data set, as a JSON object."""
    seed: Natural = 0
    """Of all splits; other seeds give other problems."""
    train: Count = 10000
    """Records of the split train."""
    valid: Count = 500
    """Records of the split valid."""
    test: Count = 1000
    """Records of the split test."""
    chains: Literal["none", "prose", "equations"] = "none"
    """Chain of thought, of gsm_symbolic only: the worked solution, or its equations, checked (lgrpo/data/equations.py)."""
    steps: tuple[int, int] = (1, 99)
    """Fewest and most equations of a chain (chains=equations)."""
    templates: tuple[int, ...] = ()
    """Templates of gsm_symbolic to train on; empty: all but those held out."""
    held_out: Natural = 0
    """Templates of gsm_symbolic that only the split held_out has, as many records as test."""


def parameters(cfg: GymConfig) -> dict[str, Any] | None:
    """The data set's own settings; None where `params` is not what it must be."""
    try:
        params = json.loads(cfg.params)
    except ValueError:
        return None
    return params if isinstance(params, dict) and not {"seed", "size"} & set(params) else None


def complaints(cfg: GymConfig, prefix: str = "data.gym.") -> Iterator[str]:
    """What is wrong with these settings beside the bounds of each, as far as it shows without reasoning-gym. prefix: of the names."""
    if parameters(cfg) is None:
        yield f"{prefix}params={cfg.params!r}: give a JSON object, such as '{{\"min_terms\": 2}}', without seed and size, which are settings of their own"
    if not 1 <= cfg.steps[0] <= cfg.steps[1]:
        yield f"{prefix}steps={cfg.steps}: give the fewest, 1 or more, and then the most equations"
    if cfg.dataset != WITH_CHAINS and (cfg.chains != "none" or cfg.templates or cfg.held_out):
        yield f"{prefix}dataset={cfg.dataset!r}: only {WITH_CHAINS} has chains and templates; leave chains, templates and held_out as they are"
