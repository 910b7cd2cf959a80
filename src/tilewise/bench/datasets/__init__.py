"""Data sets: where the requests of a benchmark come from. `sources.py` picks one by its name."""
