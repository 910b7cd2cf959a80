"""Benchmarks: load on a server, and the engine in this process. Tables, fields and file names are vLLM's.

What is measured is in dataclasses (`requests`, `load`, `figures`), so that the same answers give the same figures
wherever they came from. Nothing here knows the command line.
"""
