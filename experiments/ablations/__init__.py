"""Small diffs of the demo's RL stage: DIFF is the whole difference, get_config() applies it."""
