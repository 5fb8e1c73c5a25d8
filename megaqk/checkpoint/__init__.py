"""Checkpoints on disk: named global tensors in pieces, whole or absent, readable by one process without DeepSpeed."""
