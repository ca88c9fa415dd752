"""A pretrained model of 135M parameters on word problems in prose: from its weights to Latent-GRPO, at equal compute. See docs/smollm2.md.

Run: make smollm2 BUDGET=smoke | cpu | gpu
"""
