"""Slow, readable NumPy in float64, written from the formulas of the paper and DESIGN, never from the code under test."""
