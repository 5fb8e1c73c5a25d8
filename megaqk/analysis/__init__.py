"""What the kept checkpoints of a run tell, in one process and without DeepSpeed."""
