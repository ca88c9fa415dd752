"""Log-probs of one recorded completion, step by step in float64: decoder, densities and temperatures from DESIGN section 5."""

import numpy as np

from oracles import decoder, latent


def logps(params, cfg, prompt, record):
    """prompt: real token ids. record: the arrays of one Rollout row. Returns [steps], for the generated steps."""
    table = np.asarray(params["embed"], np.float64)
    c, steps = cfg.rollout, int(record.mask.sum())
    inputs = [table[t] for t in prompt]
    for t in range(steps - 1):
        inputs.append(sum(w * table[i] for w, i in zip(record.weights[t], record.ids[t], strict=True)))
    z = decoder.logits(params, decoder.forward(params, cfg.model, np.stack(inputs)))[len(prompt) - 1 :]
    out, thinking = [], c.mode == "latent"
    for t in range(steps):
        logits, s = z[t].copy(), c.latent.noise_scale
        if thinking and t < c.latent.min_latent:
            logits[cfg.data.think_end_id] = -1e30
        ids, token = record.ids[t], record.ids[t][0]
        if thinking and token != cfg.data.think_end_id:
            out.append(_latent(c.latent, logits, ids, record.scores[t], record.weights[t], s))
            continue
        # The token that ends latent thinking was chosen by noise of scale s; only the exact density accounts for that.
        temperature = s if thinking and c.latent.density == "exact" else c.answer.temperature
        out.append(latent.log_softmax(logits / temperature)[token])
        thinking = False
    return np.array(out)


def _latent(c, logits, ids, scores, weights, s):
    if c.density == "exact":
        return latent.exact(logits, ids, scores, s)
    logps = latent.log_softmax(logits)[ids]
    w = weights if c.density == "gumbel_weighted" else np.full(len(ids), 1 / len(ids))
    if c.density_scale == "unit":
        return latent.gumbel_density(scores, logps, w)
    return latent.gumbel_density(scores / s, logps / s, w) - np.log(s)
