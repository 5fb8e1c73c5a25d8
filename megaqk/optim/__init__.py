"""Parameter groups, schedules, the query/key timing multiplier and the optimizer."""
