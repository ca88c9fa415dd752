"""Experiments: one module each, with get_config(). Ablations are diffs of a base."""
