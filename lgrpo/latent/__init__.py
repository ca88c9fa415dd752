"""Latent policy: noise and densities, mixtures, rollout and replay. No I/O here."""
