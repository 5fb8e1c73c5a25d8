"""The engine, the loop around it, checkpoints and metrics."""
