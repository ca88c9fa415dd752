"""Tokenizers and problems for the *_smoke experiments: small, but of the same kind as the real ones. Made by make_assets.py."""
