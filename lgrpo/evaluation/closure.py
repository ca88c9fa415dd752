"""Is the average of correct first latents a correct first latent? Mixtures are not closed under averaging if accuracy falls when it is fed.

Problems with two or more correct sampled paths are run once more, noise-free, from their first latent on: fed with the average of the correct
paths' first mixtures, and, for comparison, with the first mixture of one correct path alone.
"""

from __future__ import annotations

import numpy as np
from jax.sharding import Mesh

from lgrpo.config import ExperimentConfig
from lgrpo.data.pipeline import prompt_batches
from lgrpo.data.prompts import TextTokenizer
from lgrpo.evaluation.measure import rows_of, sample
from lgrpo.evaluation.passes import UNDISTURBED, plan
from lgrpo.latent.intervene import Intervention, Kind
from lgrpo.types import Params


def average_mixture(ids: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The K heaviest tokens of the mean of M mixtures, renormalised, heaviest first (ties: lower id). ids int, weights float [M,K] -> [K], [K].

    When fewer than K tokens have mass, the first of them fills the rest with weight 0.
    """
    tokens, where = np.unique(ids, return_inverse=True)
    mass = np.bincount(where.ravel(), weights.astype(np.float64).ravel())
    order = np.argsort(-mass, kind="stable")[: ids.shape[-1]]
    out_ids, out = np.full(ids.shape[-1], tokens[order[0]], np.int32), np.zeros(ids.shape[-1], np.float32)
    out_ids[: len(order)], out[: len(order)] = tokens[order], mass[order] / mass[order].sum()
    return out_ids, out


def donors(ids: np.ndarray, weights: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """First mixtures [B,S,K] of samples, usable bool [B,S] (correct, and began with a latent) -> (problems with two or more bool [B], what they feed).

    `mixed`: the average of the usable ones; `single`: the first usable one. Each (ids, weights) [B,K]; other problems keep zeros.
    """
    several = usable.sum(-1) > 1
    fed = {name: (np.zeros(ids[:, 0].shape, np.int32), np.zeros(weights[:, 0].shape, np.float32)) for name in ("mixed", "single")}
    for b in np.flatnonzero(several):
        fed["mixed"][0][b], fed["mixed"][1][b] = average_mixture(ids[b, usable[b]], weights[b, usable[b]])
        first = int(np.argmax(usable[b]))
        fed["single"][0][b], fed["single"][1][b] = ids[b, first], weights[b, first]
    return several, fed


def closure_metrics(params: Params, cfg: ExperimentConfig, tokenizer: TextTokenizer, mesh: Mesh, problems: int) -> dict[str, float]:
    """On the first `problems` problems of cfg.data.eval_split, from cfg.evaluation.samples noisy samples each.

    eval/closure_groups: problems with two or more correct latent paths; eval/closure_mixed and eval/closure_single: accuracy of these when the
    first latent is the average, and when it is that of one path (left out when there is no such problem). cfg must be resolved.
    """
    noisy = plan(cfg, full=False)[1]
    batch = prompt_batches(cfg, tokenizer, cfg.data.eval_split, batch=problems, limit=problems)[0]
    samples, chunk = noisy.samples, noisy.chunk
    ids, weights, usable = [], [], []
    for first in range(0, samples, chunk):
        found = sample(params, cfg, mesh, noisy, batch[0], first)
        correct = np.zeros(len(batch[2]) * chunk, bool)
        correct[np.repeat(batch[2], chunk)] = [row["correct"] for row in rows_of(found, batch, noisy, first, tokenizer, cfg)]
        ids.append(found.ids[:, 0].reshape(-1, chunk, found.ids.shape[-1]))
        weights.append(found.weights[:, 0].reshape(ids[-1].shape))
        usable.append((correct & found.is_latent[:, 0]).reshape(-1, chunk))
    several, fed = donors(*(np.concatenate(x, axis=1) for x in (ids, weights, usable)))
    out = {"eval/closure_groups": float(several.sum())}
    if not several.any():
        return out
    length = found.ids.shape[1]
    for name, (new_ids, new_weights) in fed.items():
        spread = [np.ascontiguousarray(np.broadcast_to(x[:, None], (len(several), length, x.shape[-1]))) for x in (new_ids, new_weights)]
        how = Intervention(np.full(len(several), Kind.FIRST, np.int32), *spread, several.astype(np.int32))
        result = sample(params, cfg, mesh, UNDISTURBED, batch[0], 0, how)
        good = np.array([row["correct"] for row in rows_of(result, batch, UNDISTURBED, 0, tokenizer, cfg)], float)
        out[f"eval/closure_{name}"] = float(good[several[batch[2]]].mean())
    return out
