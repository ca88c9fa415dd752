"""The demo: explicit SFT -> Latent-SFT -> Latent-GRPO on the embedded word problems, with explicit GRPO beside it.

`make demo` runs experiments/demo/__main__.py, which runs the four modules in this folder one after another and evaluates each.
"""
