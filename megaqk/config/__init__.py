"""The typed configuration, its loading and checks, and what DeepSpeed is told."""
