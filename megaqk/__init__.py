"""Distributed pretraining of GPT and LLaMA models with the Q/K timing multiplier."""

__version__ = "0.1.0"
