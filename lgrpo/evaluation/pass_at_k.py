"""Unbiased pass@k and bootstrap intervals over problems. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> float | np.ndarray:
    """Unbiased estimate 1 - C(n-c, k) / C(n, k) from n samples of which c are correct.

    Scalars or arrays that broadcast. NaN where n < k; 1 where n - c < k. Errors: ValueError for c outside 0..n or k < 1.
    Source: Chen et al. 2021 (arXiv 2107.03374), as the product of 1 - k/v over v = n-c+1..n.
    """
    n_arr, c_arr, k_arr = np.broadcast_arrays(np.asarray(n), np.asarray(c), np.asarray(k))
    if np.any((c_arr < 0) | (c_arr > n_arr)):
        raise ValueError("c, the number of correct samples, must lie in 0..n")
    if np.any(k_arr < 1):
        raise ValueError("k must be at least 1")
    out = np.empty(n_arr.shape, np.float64)
    for index in np.ndindex(n_arr.shape):
        total, correct, draws = int(n_arr[index]), int(c_arr[index]), int(k_arr[index])
        if total < draws:
            out[index] = np.nan
        elif total - correct < draws:
            out[index] = 1.0
        else:
            out[index] = 1.0 - np.prod(1.0 - draws / np.arange(total - correct + 1, total + 1))
    return float(out) if out.ndim == 0 else out


def bootstrap_mean(values: ArrayLike, *, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> dict[str, float]:
    """Mean over problems with a percentile interval. values float [problems] -> {"value", "low", "high"}. Errors: ValueError when empty."""
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError("no problems to average over")
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, values.size, (resamples, values.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}
