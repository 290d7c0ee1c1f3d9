"""Vidsieve: fewer visual tokens for video LLMs in transformers, with no training."""

__version__ = "0.1.0"
