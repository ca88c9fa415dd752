"""A whole Llama / Qwen2 / Qwen3 decoder in float64, one position, head and layer at a time, from the papers and the Hugging Face weight layout."""

import math

import numpy as np


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean() + eps) * weight


def frequencies(cfg):
    """Radians per position of each rotated pair, with Llama-3 scaling by wavelength."""
    out = []
    for i in range(cfg.head_dim // 2):
        freq = cfg.rope_theta ** (-2 * i / cfg.head_dim)
        if (s := cfg.rope_scaling) is not None:
            wavelength = 2 * math.pi / freq
            longest, shortest = s.original_max_position / s.low_freq_factor, s.original_max_position / s.high_freq_factor
            if wavelength > longest:
                freq = freq / s.factor
            elif wavelength >= shortest:
                smooth = (s.original_max_position / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
                freq = (1 - smooth) * freq / s.factor + smooth * freq
        out.append(freq)
    return np.array(out)


def rotate(vector, position, freqs):
    half = len(vector) // 2
    out = np.empty_like(vector)
    for i in range(half):
        c, s = math.cos(position * freqs[i]), math.sin(position * freqs[i])
        out[i] = vector[i] * c - vector[i + half] * s
        out[i + half] = vector[i + half] * c + vector[i] * s
    return out


def forward(params, cfg, embeds):
    """Hidden states [S, D] after the final norm of one unpadded sequence of input embeddings [S, D]."""
    p = _float64(params)
    freqs, ratio = frequencies(cfg), cfg.n_heads // cfg.n_kv_heads
    x = np.array(embeds, np.float64)
    length = len(x)
    for layer in range(cfg.n_layers):
        w = {name: value[layer] for name, value in p["blocks"].items()}
        h = np.stack([rms_norm(row, w["attn_norm"], cfg.rms_eps) for row in x])
        keys, values = np.empty((length, cfg.n_kv_heads, cfg.head_dim)), np.empty((length, cfg.n_kv_heads, cfg.head_dim))
        for t in range(length):
            for head in range(cfg.n_kv_heads):
                k, v = h[t] @ w["wk"][:, head], h[t] @ w["wv"][:, head]
                if "bk" in w:
                    k, v = k + w["bk"][head], v + w["bv"][head]
                if "k_norm" in w:
                    k = rms_norm(k, w["k_norm"], cfg.rms_eps)
                keys[t, head], values[t, head] = rotate(k, t, freqs), v
        for t in range(length):
            mixed = np.zeros(cfg.d_model)
            for head in range(cfg.n_heads):
                q = h[t] @ w["wq"][:, head]
                if "bq" in w:
                    q = q + w["bq"][head]
                if "q_norm" in w:
                    q = rms_norm(q, w["q_norm"], cfg.rms_eps)
                q = rotate(q, t, freqs)
                shared = head // ratio  # consecutive query heads share a key head
                scores = np.array([q @ keys[s, shared] / math.sqrt(cfg.head_dim) for s in range(t + 1)])
                probs = np.exp(scores - scores.max())
                probs = probs / probs.sum()
                mixed = mixed + sum(probs[s] * values[s, shared] for s in range(t + 1)) @ w["wo"][head]
            x[t] = x[t] + mixed
        for t in range(length):
            n = rms_norm(x[t], w["mlp_norm"], cfg.rms_eps)
            gate = n @ w["w_gate"]
            x[t] = x[t] + (gate / (1 + np.exp(-gate)) * (n @ w["w_up"])) @ w["w_down"]
    return np.stack([rms_norm(row, p["final_norm"], cfg.rms_eps) for row in x])


def logits(params, hidden):
    p = _float64(params)
    return hidden @ (p["unembed"] if "unembed" in p else p["embed"].T)


def _float64(tree):
    return {k: _float64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}
