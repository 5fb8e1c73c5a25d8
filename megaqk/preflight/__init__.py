"""Whether the machines of a job are fit for it, asked before it starts."""
