"""Supervised targets, one sequence at a time, from DESIGN section 5."""

import math

import numpy as np


def superposition(chain, compression, kind):
    """[{token: weight}] of one chain (a list of ids): every chunk of `compression` tokens becomes one mixture."""
    weight = {
        "uniform": lambda j: 1,
        "ramp": lambda j: j + 1,
        "binomial": lambda j: math.comb(compression - 1, j),
    }[kind]
    out = []
    for start in range(0, len(chain), compression):
        mixture = {}
        for j, token in enumerate(chain[start : start + compression]):
            mixture[token] = mixture.get(token, 0) + weight(j)
        total = sum(mixture.values())
        out.append({token: w / total for token, w in mixture.items()})
    return out


def targets(thoughts, answer, end, latent):
    """[(mixture, is_latent)] of `thoughts, </think>, answer`: what is fed and what is to be predicted at each step."""
    return [(t, latent) for t in thoughts] + [({end: 1.0}, False)] + [({a: 1.0}, False) for a in answer]


def kl(labels, logps):
    """KL(labels || policy) over the stored tokens; labels are normalised here, the policy over the whole vocabulary elsewhere."""
    q = np.asarray(labels, np.float64)
    q = q / q.sum()
    return sum(p * (math.log(p) - lp) for p, lp in zip(q, logps, strict=True) if p > 0)
