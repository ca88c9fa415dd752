"""Is the thinking used? Accuracy when something of it is changed, against the undisturbed noise-free pass on the same problems.

If accuracy stays where it was with latents of another problem, the chain carries nothing that the answer needs; if it falls with `hardened`, the
mixtures carry more than their heaviest tokens. How to read the arms and the curve: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lgrpo.evaluation.compare import sign_test
from lgrpo.evaluation.pass_at_k import mean_interval, wilson_interval
from lgrpo.evaluation.shards import Row
from lgrpo.evaluation.summary import columns, shown
from lgrpo.latent.intervene import Intervention, Kind
from lgrpo.types import Finish, Rollout


def build(kind: Kind, undisturbed: Rollout, uid: np.ndarray, kept: int = 0) -> Intervention:
    """The intervention on a batch of one sample a problem, from its noise-free rollout. undisturbed [B, T, ...] on the host; uid int [B].

    The latents of shuffled rows come from the next row that holds another problem and has latents; a row without such a neighbour keeps its
    own. Reordered rows feed their second latent first and their first one last. kept: steps of thinking that CUT leaves.
    """
    steps = np.asarray(undisturbed.is_latent).sum(-1).astype(np.int32)  # thinking comes first: latents are columns 0 .. steps-1
    ids, weights = np.asarray(undisturbed.ids), np.asarray(undisturbed.weights)
    rows, length = steps.shape[0], ids.shape[1]
    if kind == Kind.CUT:
        steps = np.full(rows, kept, np.int32)
    if kind == Kind.SHUFFLED:
        donor, found = _donors(np.asarray(uid), steps)
        ids, weights, steps = ids[donor], weights[donor], np.where(found, steps[donor], 0).astype(np.int32)
    elif kind == Kind.REORDERED:
        at = np.arange(length)[None]
        count = np.maximum(steps, 1)[:, None]
        order = np.where(at < steps[:, None], (at + 1) % count, at)[..., None]
        ids, weights = np.take_along_axis(ids, order, axis=1), np.take_along_axis(weights, order, axis=1)
    return Intervention(kind=np.full(rows, kind, np.int32), ids=ids, weights=weights, steps=steps)


def _donors(uid: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row of the donor int [B], whether there is one bool [B])."""
    rows = len(uid)
    donor, found = np.arange(rows), np.zeros(rows, bool)
    for shift in range(1, rows):
        other = (np.arange(rows) + shift) % rows
        fits = ~found & (uid[other] != uid) & (steps[other] > 0)
        donor, found = np.where(fits, other, donor), found | fits
        if found.all():
            break
    return donor, found


_LENGTHS = ("latent_steps", "chain_tokens", "answer_tokens")


def effects(undisturbed: Sequence[Row], by_name: dict[str, Sequence[Row]], weights: np.ndarray) -> dict[str, dict[str, Any]]:
    """By name: accuracy, its change against the undisturbed pass (paired bootstrap), the share of problems with another answer, lengths, the share
    of completions that were cut, and the sign test on the problems that were lost or won. weights: bootstrap_weights of the problems."""
    base = columns(undisturbed)
    out: dict[str, dict[str, Any]] = {}
    for name, rows in by_name.items():
        table = columns(rows)
        difference = (table["correct"] - base["correct"])[:, 0]
        won, lost, p = sign_test(difference)
        out[name] = {
            "accuracy": wilson_interval(table["correct"][:, 0].astype(float)),
            "change": mean_interval(difference, weights),
            "answer_changed": wilson_interval((table["answer"] != base["answer"])[:, 0].astype(float)),
            **{length: mean_interval(table[length][:, 0], weights) for length in _LENGTHS},
            "truncated_frac": wilson_interval((table["finish"] == Finish.LENGTH.name)[:, 0].astype(float)),
            "won": won,
            "lost": lost,
            "p": p,
        }
    return out


def effect_rows(
    found: dict[str, dict[str, Any]], what: str = "latents", lengths: Sequence[str] = ("latent_steps",)
) -> list[dict[str, Any]]:
    """For summary_table. what: heading of the names; lengths: those that the table has."""
    return [
        {
            what: name,
            "accuracy": shown(e["accuracy"], 3),
            "change": shown(e["change"], 3),
            "answer_changed": shown(e["answer_changed"], 3),
            **{length: shown(e[length], 2) for length in lengths},
            "p": f"{e['p']:.2g}",
        }
        for name, e in found.items()
    ]
