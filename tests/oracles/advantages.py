"""Advantages of one group, sample by sample, from DESIGN section 5."""

import numpy as np


def group(rewards, valid, invalid):
    """rewards [G] floats, valid [G] bools -> [G]."""
    counted = [r for r, v in zip(rewards, valid, strict=True) if v or invalid != "exclude"]
    out = np.zeros(len(rewards))
    if (invalid != "keep" and sum(valid) < 2) or len(set(counted)) < 2:
        return out
    mean, std = np.mean(counted, dtype=np.float64), np.std(np.asarray(counted, np.float64), ddof=1)
    for i, (r, v) in enumerate(zip(rewards, valid, strict=True)):
        if v or invalid == "keep":
            out[i] = (float(r) - mean) / (std + 1e-6)
    return out


def spread(advantages, scores, lengths, total):
    """Over positions [G, T], the first one kept by the winner alone: the best score with a positive advantage. -inf cannot win."""
    out = np.array([[a if t < n else 0.0 for t in range(total)] for a, n in zip(advantages, lengths, strict=True)])
    winner = None
    for i, (a, s) in enumerate(zip(advantages, scores, strict=True)):
        if a > 0 and s > -np.inf and (winner is None or s > scores[winner]):
            winner = i
    if winner is not None:
        for i in range(len(advantages)):
            if i != winner:
                out[i, 0] = 0.0
    return out
