"""vLLM's command line: how flags are written, which there are, and what becomes of each here.

`flag` and `read` say what a flag is and what its text means, `parse` reads a line, `file` a YAML file. `table` has the
options of this program, `foreign` the flags of vLLM that are none, `variables` its environment. `settings` makes an
EngineConfig and a ServerConfig of all that, and `page` the help.
"""
