"""Timed comparisons. Not tests: run them with `make bench` on a quiet machine; every ratio comes from one run."""
