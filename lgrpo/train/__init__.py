"""Training loops and the jitted steps."""
