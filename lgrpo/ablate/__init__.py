"""python -m lgrpo ablate: a grid of settings times seeds, each cell a process of its own, and one table of paired differences."""
