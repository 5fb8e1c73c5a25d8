"""Text from a model, by transformers."""
