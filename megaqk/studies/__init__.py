"""Studies: arms x seeds of one configuration, run and reported."""
