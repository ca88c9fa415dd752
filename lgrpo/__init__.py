"""lgrpo: Latent-GRPO (arXiv 2604.27998) in JAX."""

__version__ = "0.1.0"
