"""Accuracy of checkpoints and of Hugging Face models on tasks of lm-evaluation-harness."""
