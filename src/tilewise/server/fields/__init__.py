"""The fields of request bodies: `tables.py` has every one of every route."""
