"""The jitted steps, one file each: rollout and policy update (rl), supervised update (sft). Everything else is a pure function that these call."""
