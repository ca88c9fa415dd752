"""Grids as data for `python -m lgrpo ablate`: GRID or AXES, COMMON for all cells, BASE to compare with. docs/ablations.md explains them."""
