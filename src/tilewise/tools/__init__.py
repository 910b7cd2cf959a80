"""Tools for people who test with Tilewise; the engine does not need them."""
