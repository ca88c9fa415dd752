"""Densities, supports and sampling laws of a latent step, from DESIGN section 5."""

import itertools
import math

import numpy as np


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def gumbel_density(scores, logps, weights):
    """sum_k w_k (-x_k - exp(-x_k)) with x = score - logp; weights 1/K give the paper's mean."""
    x = np.asarray(scores, np.float64) - np.asarray(logps, np.float64)
    return (np.asarray(weights, np.float64) * (-x - np.exp(-x))).sum(axis=-1)


def slope(x, advantage, score_gradient):
    """Derivative in logp of one component's term at margin x."""
    if x < 0 and advantage <= 0 and score_gradient == "bounded":
        return math.exp(x) - 1
    if x < 0 and advantage <= 0 and score_gradient == "aligned":
        return 1 - math.exp(-abs(x))
    return 1 - math.exp(-x)


def exact(logits, ids, scores, scale):
    """Log-density of the K best of l + s * Gumbel up to a common shift, one row. scores u, best first."""
    log_pi = log_softmax(np.asarray(logits, np.float64) / scale)
    chosen, k = log_pi[ids], len(ids)
    others = np.delete(log_pi, ids)
    a = np.asarray(scores, np.float64) / scale
    terms = np.concatenate([chosen - a, others - a[-1]])
    top = terms.max()
    total = top + math.log(np.exp(terms - top).sum())
    return (chosen - a).sum() - k * total + math.lgamma(k)


def nucleus(probs, top_p):
    """Tokens with less than top_p mass strictly ahead in descending order, ties by lower id. One row."""
    order = np.argsort(-np.asarray(probs, np.float64), kind="stable")
    keep, ahead = np.zeros(len(order), bool), 0.0
    for token in order:
        keep[token] = ahead < top_p
        ahead += float(probs[token])
    return keep


def ordered_sets(probs, k):
    """Probability of every ordered set of k tokens drawn one after another without replacement."""
    out = {}
    for ids in itertools.permutations(range(len(probs)), k):
        p, left = 1.0, 1.0
        for i in ids:
            p *= probs[i] / left
            left -= probs[i]
        out[ids] = p
    return out
