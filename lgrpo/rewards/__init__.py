"""Verdicts on completions."""
