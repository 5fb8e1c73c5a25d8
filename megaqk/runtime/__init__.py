"""What a process needs from the machine before it can train."""
