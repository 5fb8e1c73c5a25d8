"""Tasks of lm-evaluation-harness that need no network; its own command line takes them by `--include_path`."""
