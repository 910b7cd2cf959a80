"""vLLM's options that are none here, and what becomes of each: in Python, on the command line and in files.

`entry` says what such an option is, `engine` and `server` list them, `variables` lists environment variables,
`keywords` is for keywords of Python calls, and `modules` for modules that programs import. `graphs` knows the objects
whose keys are explained one by one. `translate` turns all options that vLLM's engine takes into options of this one.
"""
