"""Records, tokens and batches."""
