"""python -m lgrpo selftest: checks that a user runs on their own machine and mesh."""
