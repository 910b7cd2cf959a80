"""vLLM's command line: how flags are written, which there are, and what becomes of each here.

`flag` says what a flag is and what its text means, `parse` reads command lines and YAML files, and `grps` the YAML
files of grps. `table` has every flag of `tilewise serve`, and makes an EngineConfig and a ServerConfig of a line.
`variables` lists the environment variables, and `help` writes the help. The flags of vLLM that are no options here are
in `tilewise.foreign`.
"""
