"""The decoder: blocks built from parallel layers, and what is known of their parameters."""
