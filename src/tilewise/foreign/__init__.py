"""vLLM's options that are none here, and what becomes of each: in Python, on the command line and in files.

`entry` says what such an option is, `engine` and `server` list them, `graphs` knows the objects whose keys are
explained one by one, and `translate` makes options of this engine of all that vLLM's takes.
"""
