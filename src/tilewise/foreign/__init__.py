"""vLLM's options that are none here, and what becomes of each: in Python, on the command line and in files.

`table` lists them, `translate` turns options into those of this engine, `objects` knows the keys of those that are
objects. `variables` lists environment variables, `keywords` is for keywords of Python calls, and `modules` for modules
that programs import.
"""
