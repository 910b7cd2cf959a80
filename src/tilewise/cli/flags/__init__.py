"""The command line: how flags are written, which there are, and what becomes of each here. It is vLLM's.

`flag` says what a flag is and what its text means, `parse` reads command lines and YAML files, and `verb` says what a
verb is, and writes its help. `settings` has every flag of `tilewise serve`, and makes an EngineConfig and a
ServerConfig of a line. The flags of vLLM that are no options here are in `tilewise.foreign`.
"""
