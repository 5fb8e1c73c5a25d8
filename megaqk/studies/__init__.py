"""Controlled studies: arms by seeds, run and reported."""
