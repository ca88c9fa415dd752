"""Advantages, losses and label construction: pure functions, no I/O."""
