"""Log-probs of one recorded completion, step by step in float64: decoder, densities and temperatures from DESIGN section 5."""

import jax
import numpy as np
from scipy import stats

from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gaussian import Gaussian
from oracles import decoder, latent


def step_logits(params, cfg, prompt, record):
    """Logits [steps, V] from which a completion's steps were drawn. prompt: real token ids. record: the arrays of one Rollout row."""
    table = np.asarray(params["embed"], np.float64)
    inputs = [table[t] for t in prompt]
    for t in range(int(record.mask.sum()) - 1):
        inputs.append(fed(table, cfg.rollout.latent, record, t))
    z = decoder.logits(params, decoder.forward(params, cfg.model, np.stack(inputs)))[len(prompt) - 1 :]
    if cfg.rollout.mode == "latent":  # no row can have ended its thinking earlier
        z[: cfg.rollout.latent.min_latent, cfg.data.think_end_id] = -1e30
    return z


def logps(params, cfg, prompt, record):
    """Arguments as for step_logits. Returns [steps], for the generated steps."""
    table = np.asarray(params["embed"], np.float64)
    c, out, thinking = cfg.rollout, [], cfg.rollout.mode == "latent"
    for t, logits in enumerate(step_logits(params, cfg, prompt, record)):
        s = c.latent.noise_scale
        ids, token = record.ids[t], record.ids[t][0]
        if thinking and token != cfg.data.think_end_id:
            if isinstance(c.latent.law, Gaussian):
                out.append(_gaussian(c.latent, logits, ids, record.scores[t], record.weights[t], table, cfg.data.think_end_id))
            else:
                out.append(_latent(c.latent, logits, ids, record.scores[t], record.weights[t], s))
            continue
        # The token that ends latent thinking was chosen by noise of scale s; the exact and the Gaussian law account for that.
        temperature = {Exact: s, Gaussian: c.latent.tau}.get(type(c.latent.law), c.answer.temperature) if thinking else c.answer.temperature
        out.append(latent.log_softmax(logits / temperature)[token])
        thinking = False
    return np.array(out)


def fed(table, c, record, t):
    """The input that follows step t of one row."""
    mixture = record.weights[t] @ table[record.ids[t]]
    if isinstance(c.law, Gaussian) and record.is_latent[t]:
        mixture = mixture + _deviation(c, table) * _noise(record.scores[t], table.shape[1])
    return mixture


def _deviation(c, table):
    return c.law.sigma * c.noise_scale * np.sqrt(np.mean(table**2))


def _noise(scores, width):
    """What the two seeds in a record regenerate."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), int(scores[0])), int(scores[1]))
    return np.asarray(jax.random.normal(key, (width,)), np.float64)


def _gaussian(c, logits, ids, scores, weights, table, end):
    """log(1 - p_end) and the normal density of what was fed, around the mixture that these logits make of the recorded tokens."""
    logps = latent.log_softmax(logits / c.tau)
    own = np.exp(logps[ids]) / np.exp(logps[ids]).sum()
    fed = weights @ table[ids] + _deviation(c, table) * _noise(scores, table.shape[1])
    return np.log1p(-np.exp(logps[end])) + stats.norm.logpdf(fed, own @ table[ids], _deviation(c, table)).sum()


def _latent(c, logits, ids, scores, weights, s):
    if isinstance(c.law, Exact):
        return latent.exact(logits, ids, scores, s)
    logps = latent.log_softmax(logits)[ids]
    w = {"mean": np.full(len(ids), 1 / len(ids)), "weighted": weights, "sum": np.ones(len(ids))}[c.law.density]
    if c.law.density_scale == "unit":
        return latent.gumbel_density(scores, logps, w)
    return latent.gumbel_density(scores / s, logps / s, w) - w.sum() * np.log(s)
