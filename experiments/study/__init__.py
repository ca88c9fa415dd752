"""The study: grids of experiments/sweeps on the demo's task, from starts of its own for every seed."""
