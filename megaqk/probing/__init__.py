"""What is measured on weights and activations: pure functions of tensors, for a run and for what comes after it."""
