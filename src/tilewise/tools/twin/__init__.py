"""Twins: tiny checkpoints of noise, each with the structure, the files and the token order of a published one."""
