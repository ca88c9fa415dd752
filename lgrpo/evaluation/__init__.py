"""Accuracy with intervals, pass@k, per-sample records."""
