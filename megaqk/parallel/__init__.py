"""Tensor, sequence, pipeline and data parallelism. Nothing in here knows what a decoder is."""
